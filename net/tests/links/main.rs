//! Real QUIC on loopback: transports that send, refuse, break and heal.

mod faults;
mod flow;
mod harness;
mod refusal;
mod restart;

//! The boundary between a pure state machine and its driver.
//!
//! A [`Machine`] takes inputs and time, reads a store, and answers with [`Effects`]. The driver (group commit
//! in production, the world in the simulator) runs it for many inputs over one growing batch and obeys the
//! *driver law*: commit the batch atomically and durably, and only *then* release the outputs, in order. If
//! the commit or a machine's step fails, nothing is released and the machine is dropped: it never goes on from
//! a state that its store does not have.

use crate::store::{Batch, StoreError, StoreRead};
use crate::time::{Mono, Now};

/// What a machine wants done: a batch to commit, then outputs to release.
#[derive(Debug)]
pub struct Effects<O> {
    /// Changes to commit before anything is released.
    pub batch: Batch,
    /// What to release afterwards, in order.
    pub outputs: Vec<O>,
}

impl<O> Default for Effects<O> {
    fn default() -> Self {
        Self { batch: Batch::default(), outputs: Vec::new() }
    }
}

/// A deterministic state machine over a store.
pub trait Machine {
    /// What it is told.
    type Input;
    /// What it wants released: sends, replies, events.
    type Output;

    /// Takes one input. An error is final: the node stops.
    fn handle(
        &mut self,
        now: Now,
        input: Self::Input,
        store: &impl StoreRead,
        out: &mut Effects<Self::Output>,
    ) -> Result<(), StoreError>;

    /// When [`Self::handle_timeout`] wants to be called next, if at all.
    fn next_deadline(&self) -> Option<Mono>;

    /// Does what is due. May be called early: then it does nothing.
    fn handle_timeout(
        &mut self,
        now: Now,
        store: &impl StoreRead,
        out: &mut Effects<Self::Output>,
    ) -> Result<(), StoreError>;
}

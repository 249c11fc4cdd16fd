//! Frames and connections between nodes: what is sent, what arrives, and who learns when a connection begins and ends.

use godwit_proto::{Input, LinkId, Message};

use crate::draws::Of;
use crate::network::{Frame, Pair, pair};
use crate::oracle::Violation;
use crate::trace::What;
use crate::world::{Event, World};

impl World {
    pub(super) fn arrive(&mut self, frame: Frame) -> Result<(), Violation> {
        if !self.is_up(frame.to) {
            return Ok(());
        }
        let peer = self.nodes[frame.from].name.clone();
        self.trace.mark(self.now_us, || What::Arrived { number: frame.number });
        let link = LinkId(frame.link);
        if frame.damaged {
            self.trace.line(self.now_us, format_args!("n{} gets damaged bytes from {peer}", frame.to));
            self.damaged_links.insert(link);
        }
        self.nodes[frame.to]
            .inbox
            .push_back((Input::Frame { peer, link, bytes: frame.bytes }, frame.damaged));
        self.work(frame.to)
    }

    pub(super) fn send(
        &mut self,
        i: usize,
        peer: &str,
        link: LinkId,
        wire: u8,
        message: &Message,
    ) -> Result<(), Violation> {
        let Some(bytes) = message.encode(wire) else {
            return Err(Violation::new(10, format!("n{i} sends {} on wire version {wire}", message.name())));
        };
        self.trace.line(
            self.now_us,
            format_args!("n{i} sends {} to {peer}: {} bytes", message.name(), bytes.len()),
        );
        if let Some(to) = self.other_end(i, peer, link) {
            self.messages += 1;
            let (number, bytes_len) = (self.messages, bytes.len());
            let message = message.name();
            self.trace.mark(self.now_us, || What::Sent { number, from: i, to, message, bytes: bytes_len });
            self.transmit(Frame { number, from: i, to, link: link.0, bytes, damaged: false });
        }
        Ok(())
    }

    /// The node of a name at the other end of a connection, if that stands.
    pub(super) fn other_end(&self, i: usize, peer: &str, link: LinkId) -> Option<usize> {
        (0..self.nodes.len()).find(|&to| {
            to != i && self.nodes[to].name == peer && self.network.connection(pair(i, to)) == Some(link.0)
        })
    }

    pub(super) fn transmit(&mut self, frame: Frame) {
        self.frames += 1;
        for (arrives, copy) in self.network.send(self.draws, self.now_us, frame) {
            self.at(arrives - self.now_us, Event::Arrival(copy));
        }
    }

    pub(super) fn connect(&mut self, (a, b): Pair) -> Result<(), Violation> {
        let answers = |i: usize| self.is_up(i) && !self.nodes[i].trouble.paused;
        let link = if answers(a) && answers(b) { self.network.connect((a, b)) } else { None };
        let Some(link) = link else {
            if self.network.connection((a, b)).is_none() {
                self.at(self.network.config().connect_us, Event::Connect((a, b)));
            }
            return Ok(());
        };
        self.trace.line(self.now_us, format_args!("n{a} and n{b} connect as {link}"));
        self.displace(a, b);
        let (of_a, of_b) = (self.nodes[a].name.clone(), self.nodes[b].name.clone());
        let wire = self.nodes[a].wire.min(self.nodes[b].wire);
        self.input(a, Input::Up { peer: of_b, link: LinkId(link), wire })?;
        self.input(b, Input::Up { peer: of_a, link: LinkId(link), wire })
    }

    /// Ends a connection: each side that is up learns of it in its own time, and a new one is tried.
    pub(crate) fn disconnect(&mut self, (a, b): Pair) {
        let Some(link) = self.network.disconnect((a, b)) else { return };
        let nth = self.network.connections((a, b));
        let (idle, connect) = (self.network.config().idle_us, self.network.config().connect_us);
        for (node, peer) in [(a, b), (b, a)] {
            let name = [node as u64, peer as u64, nth];
            let after = self.draws.of(Of::Ending, &name).below(idle / 4 + 1);
            self.at(after, Event::Down { node, peer, link });
        }
        let mut rng = self.draws.of(Of::Reconnecting, &[a as u64, b as u64, nth]);
        let after = connect + rng.below(connect + 1);
        self.at(after, Event::Connect((a, b)));
    }
}

//! The side that has the state.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use godwit_core::context::VersionVector;
use godwit_core::ids::PartitionId;
use godwit_core::repair::{Found, Leaves, Listed, RepairRead, Wanted};
use godwit_core::store::StoreRead;
use godwit_core::time::Mono;

use super::tree::{LEVEL_BITS, NODES_MAX, Tree, tree_bits};
use super::{LEAVES_MAX, LINGER_US, OTHERS_HASHES_MAX, SCRUBS_SERVED_MAX, SERVED_MAX, hash_key};
use crate::interface::{Output, ReaderId};
use crate::message::Message;
use crate::message::repair::{Ask, Part, Pull, Root, Rows, State};
use crate::node::{Node, Step};

/// What a part counts for in the window beyond its rows, so that their number is bounded too.
const PART_BYTES: usize = 256;

/// A repair or scrub that is served.
#[derive(Debug)]
pub(crate) struct Serving {
    partition: PartitionId,
    repair: u64,
    /// Whether it is a scrub: rows are compared, contents included, and only such as the asker lacks are sent.
    is_scrub: bool,
    asked: VersionVector,
    /// Of the snapshot; known after its first read.
    theirs: VersionVector,
    pub(crate) reader: ReaderId,
    is_reading: bool,
    stream: Stream,
    /// Grows while rows are read, and is then cut to what the number of rows asks for.
    tree: Tree,
    covered: u64,
    heard_at: Mono,
}

/// Rows or a list on their way, of which each part follows from one read.
#[derive(Debug)]
struct Stream {
    number: u32,
    wanted: Wanted,
    /// After which key to go on reading; `None`: all is read.
    after: Option<Vec<u8>>,
    /// Parts sent and not taken, with the key up to which they are, and their bytes.
    in_flight: VecDeque<(Option<Vec<u8>>, Part, usize)>,
    in_flight_bytes: usize,
}

impl Stream {
    fn new(number: u32, wanted: Wanted) -> Self {
        let after = Some(Vec::new());
        Self { number, wanted, after, in_flight: VecDeque::new(), in_flight_bytes: 0 }
    }

    /// Whether it is the one with the rows, and the tree at its end.
    fn is_first(&self) -> bool {
        self.number == 0
    }

    /// Parts up to a key were taken. What is no place of it is passed over: a leftover.
    fn took(&mut self, upto: &[u8]) {
        let Some(taken) = self.in_flight.iter().position(|(end, ..)| end.as_deref() == Some(upto)) else {
            return;
        };
        self.in_flight_bytes -= self.in_flight.drain(..=taken).map(|(.., bytes)| bytes).sum::<usize>();
    }

    /// Parts to be sent again to one who has everything up to a key.
    fn again(&self, upto: &[u8]) -> Vec<Part> {
        let is_next = self.in_flight.front().is_some_and(|(_, part, _)| part_after(part) == upto);
        self.in_flight.iter().filter(|_| is_next).map(|(_, part, _)| part.clone()).collect()
    }
}

impl Serving {
    /// When it is to be looked at again.
    pub(crate) fn deadline(&self, read_at: Mono, window_bytes: usize) -> Mono {
        let given_up = self.heard_at.plus_us(LINGER_US);
        if self.may_read(window_bytes) { read_at.min(given_up) } else { given_up }
    }

    fn may_read(&self, window_bytes: usize) -> bool {
        let has_room = self.stream.in_flight_bytes < window_bytes;
        has_room && !self.is_reading && self.stream.after.is_some()
    }
}

impl Node {
    /// A peer asks for state; `Err` says why the link must close.
    pub(crate) fn pulled<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        pull: Pull,
    ) -> Result<(), String> {
        let Pull { partition, repair, ask } = pull;
        let now = step.now.mono;
        let known = self.repairs.serving.get_mut(name);
        let known = known.filter(|it| (it.repair, it.partition) == (repair, partition));
        let Some(serving) = known else {
            match ask {
                Ask::Begin { asked } => self.serve(step, name, (partition, repair), asked, false),
                // It asks again, so it is not told. Nodes scrub in turns of one length: one that went away when there is no
                // room would find none the next time either.
                Ask::Compare { asked } if !self.context(partition).covers_all(&asked) => {}
                Ask::Compare { .. } if self.serves_others(name) >= SCRUBS_SERVED_MAX => {}
                Ask::Compare { asked } => self.serve(step, name, (partition, repair), asked, true),
                Ask::End => {}
                _ => self.answer(step, name, (partition, repair), Part::Lost),
            }
            return Ok(());
        };
        serving.heard_at = now;
        match ask {
            // The answer to the first one is on its way, or lost.
            Ask::Begin { .. } | Ask::Compare { .. } => self.took(step, name, (0, &[]), true),
            Ask::Took { stream, upto, again } => self.took(step, name, (stream, &upto), again),
            Ask::Nodes { depth, positions } => return self.nodes_asked(step, name, depth, positions),
            Ask::List { stream, positions } => return self.list_asked(step, name, stream, positions, None),
            Ask::Others { stream, positions, hashes } => {
                return self.list_asked(step, name, stream, positions, Some(hashes));
            }
            Ask::Hold => {}
            Ask::End => self.end_serving(step, name),
        }
        Ok(())
    }

    fn serves_others(&self, name: &str) -> usize {
        self.repairs.serving.keys().filter(|other| *other != name).count()
    }

    fn serve<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        (partition, repair): (PartitionId, u64),
        asked: VersionVector,
        is_scrub: bool,
    ) {
        self.end_serving(step, name);
        if self.repairs.serving.len() >= SERVED_MAX {
            return self.answer(step, name, (partition, repair), Part::Busy);
        }
        let serving = Serving {
            partition,
            repair,
            is_scrub,
            asked,
            theirs: VersionVector::new(),
            reader: self.repairs.next_reader(),
            is_reading: false,
            stream: Stream::new(0, if is_scrub { Wanted::Hashes } else { Wanted::Missing }),
            tree: Tree::new(self.config.tuning.repair_tree_bits),
            covered: 0,
            heard_at: step.now.mono,
        };
        self.repairs.serving.insert(name.to_string(), serving);
    }

    pub(crate) fn end_serving<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str) {
        if let Some(serving) = self.repairs.serving.remove(name) {
            step.outputs.push(Output::EndRead { reader: serving.reader });
        }
    }

    fn took<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        (stream, upto): (u32, &[u8]),
        again: bool,
    ) {
        let Some(serving) = self.repairs.serving.get_mut(name) else { return };
        if serving.stream.number != stream {
            return;
        }
        serving.stream.took(upto);
        if again {
            let about = (serving.partition, serving.repair);
            serving.stream.again(upto).into_iter().for_each(|part| self.answer(step, name, about, part));
        }
        self.serving_due(step);
    }

    fn nodes_asked<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        depth: u8,
        positions: Vec<u32>,
    ) -> Result<(), String> {
        let Some(serving) = self.repairs.serving.get(name) else { return Ok(()) };
        let tree = &serving.tree;
        let ends = serving.stream.after.is_none();
        if !ends && !serving.stream.is_first() {
            // Asked again, and late: it has gone on to list leaves since.
            return Ok(());
        }
        let fits = depth.saturating_add(LEVEL_BITS) <= tree.bits() && positions.len() <= NODES_MAX;
        if !ends || !fits || positions.iter().any(|&at| at >> depth != 0) {
            return Err("a repair asks for nodes that its tree does not have".into());
        }
        let below = |at: &u32| (at << LEVEL_BITS)..((at + 1) << LEVEL_BITS);
        let sums = positions.iter().flat_map(below);
        let sums = sums.map(|at| tree.sum(depth + LEVEL_BITS, at).to_be_bytes()).collect();
        let about = (serving.partition, serving.repair);
        self.answer(step, name, about, Part::Nodes { depth, positions, sums });
        Ok(())
    }

    fn list_asked<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        stream: u32,
        positions: Vec<u32>,
        but: Option<Vec<[u8; 8]>>,
    ) -> Result<(), String> {
        let Some(serving) = self.repairs.serving.get_mut(name) else { return Ok(()) };
        if serving.stream.is_first() && serving.stream.after.is_some() {
            return Err("a repair asks for leaves before its rows have ended".into());
        }
        if stream <= serving.stream.number {
            self.took(step, name, (stream, &[]), true);
            return Ok(());
        }
        let bits = serving.tree.bits();
        if positions.len() > LEAVES_MAX || positions.iter().any(|&at| u64::from(at) >> bits != 0) {
            return Err("a repair asks for leaves that its tree does not have".into());
        }
        if but.as_ref().is_some_and(|hashes| hashes.len() > OTHERS_HASHES_MAX) {
            return Err("a scrub names more hashes than it may".into());
        }
        let positions: BTreeSet<u32> = positions.into_iter().collect();
        let leaves = Leaves { bits, positions };
        let wanted = match but {
            None => Wanted::Within(Arc::new(leaves)),
            Some(hashes) => {
                let hashes = hashes.into_iter().map(u64::from_be_bytes).collect();
                Wanted::Others(Arc::new(Listed { leaves, hashes }))
            }
        };
        serving.stream = Stream::new(stream, wanted);
        self.serving_due(step);
        Ok(())
    }

    /// Goes on with what is served.
    pub(super) fn serving_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        let late = |serving: &Serving| serving.heard_at.plus_us(LINGER_US) <= now;
        let serving = self.repairs.serving.iter();
        let gone: Vec<String> = serving.filter(|(_, it)| late(it)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| self.end_serving(step, name));
        if self.repairs.read_at() > now {
            return;
        }
        let (sizes, window) = (self.read_sizes(), self.config.tuning.repair_window_bytes);
        for serving in self.repairs.serving.values_mut().filter(|serving| serving.may_read(window)) {
            let Some(after) = serving.stream.after.clone() else { continue };
            serving.is_reading = true;
            let wanted = serving.stream.wanted.clone();
            let fresh = serving.stream.is_first() && after.is_empty();
            let read = RepairRead {
                partition: serving.partition,
                key: hash_key(serving.repair),
                asked: serving.asked.clone(),
                theirs: None,
                contents: serving.is_scrub,
                wanted,
                after,
            };
            let reader = serving.reader;
            step.outputs.push(Output::Read { reader, fresh, read: Box::new(read), sizes });
        }
    }

    /// A read for a peer is done.
    pub(super) fn served_read<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str, found: Found) {
        let most = self.config.tuning.repair_tree_bits;
        let Some(serving) = self.repairs.serving.get_mut(name) else { return };
        serving.is_reading = false;
        let Some(after) = serving.stream.after.take() else { return };
        let about = (serving.partition, serving.repair);
        let bytes: usize = found.rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        let ends = found.upto.is_none();
        let part = if serving.stream.is_first() {
            serving.theirs = found.context;
            serving.covered += found.hashes.len() as u64;
            found.hashes.iter().for_each(|hash| serving.tree.add(*hash));
            let tree = ends.then(|| {
                let bits = tree_bits(serving.covered, most);
                serving.tree = serving.tree.cut(bits);
                Root { bits, sum: serving.tree.sum(0, 0).to_be_bytes() }
            });
            let theirs = serving.theirs.clone();
            let (clock, rows) = (self.clock.last(), Rows::pack(found.rows));
            let upto = found.upto.clone();
            Part::Rows { theirs, after, upto, clock, rows, requests: found.requests, tree }
        } else if matches!(serving.stream.wanted, Wanted::Others(_)) {
            let (stream, rows) = (serving.stream.number, Rows::pack(found.rows));
            Part::Others { stream, after, upto: found.upto.clone(), rows }
        } else {
            let hashes = found.hashes.into_iter().map(u64::to_be_bytes).collect();
            Part::List { stream: serving.stream.number, after, upto: found.upto.clone(), hashes }
        };
        serving.stream.after.clone_from(&found.upto);
        let stream = &mut serving.stream;
        let size = bytes + PART_BYTES;
        stream.in_flight.push_back((found.upto, part.clone(), size));
        stream.in_flight_bytes += size;
        self.repairs.bytes_sent += bytes as u64;
        self.answer(step, name, about, part);
        self.serving_due(step);
    }

    fn answer<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        (partition, repair): (PartitionId, u64),
        part: Part,
    ) {
        let Some(session) = self.peers.get(name).and_then(|peer| peer.session.as_ref()) else { return };
        step.send(name, session.place(), Message::State(State { partition, repair, part }));
    }
}

fn part_after(part: &Part) -> &[u8] {
    match part {
        Part::Rows { after, .. } | Part::List { after, .. } | Part::Others { after, .. } => after,
        _ => &[],
    }
}

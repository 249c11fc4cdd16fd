//! A failure in words: what did not hold, the shortest history that shows it, what each node has then.

use std::fmt::{self, Write as _};

use godwit_core::ids::RecordId;
use godwit_core::op::{Op, Write};
use godwit_core::read::ReadError;
use godwit_core::repair::Settled;

use godwit_proto::Reply;

use crate::clients::Plan;
use crate::oracle;
use crate::run::RunReport;
use crate::script::{Act, Script, Step};
use crate::workload;
use crate::world::World;

/// What a node has at the moment of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The node.
    pub node: String,
    /// Whether its process runs.
    pub up: bool,
    /// What it has applied, a partition each.
    pub applied: Vec<String>,
    /// Records and what they read.
    pub reads: Vec<(String, String)>,
}

impl World {
    /// What all nodes have, and read for the records that a message names; for all if it names none.
    pub(crate) fn views(&self, what: &str) -> Vec<View> {
        let mut records = workload::records();
        if records.iter().any(|record| what.contains(&record.to_string())) {
            records.retain(|record| what.contains(&record.to_string()));
        }
        let taking_part = (0..self.nodes.len()).filter(|&i| self.nodes[i].takes_part);
        taking_part.map(|i| self.view(i, &records)).collect()
    }

    fn view(&self, i: usize, records: &[RecordId]) -> View {
        let applied = match self.contexts(i) {
            Ok(contexts) => {
                contexts.iter().map(|(id, context)| format!("partition {id}: {context:?}")).collect()
            }
            Err(broken) => vec![broken.to_string()],
        };
        let read = |record: &RecordId| {
            let store = Settled::open(&self.nodes[i].disk).map_err(ReadError::from);
            match store.and_then(|store| oracle::read_spec(&store, self.read_at(0), record)) {
                Ok(fields) => format!("{fields:?}"),
                Err(error) => error.to_string(),
            }
        };
        View {
            node: format!("n{i}"),
            up: self.is_up(i),
            applied,
            reads: records.iter().map(|record| (record.to_string(), read(record))).collect(),
        }
    }
}

/// The history of a script, a line a step.
pub fn history(script: &Script) -> String {
    let mut text = String::new();
    for Step { number, at_us, act } in &script.steps {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>13.6} s  #{number:<4} {act}", *at_us as f64 / 1e6);
    }
    let _ = writeln!(
        text,
        "{:>13.6} s        faults end: links heal, nodes start, all must agree",
        script.config.active_us as f64 / 1e6
    );
    text
}

/// What each node has at the moment of a failure.
pub fn views(report: &RunReport) -> String {
    let mut text = String::new();
    for View { node, up, applied, reads } in &report.views {
        let state = if *up { "up" } else { "down" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    {node} ({state}) has applied {}", applied.join(", "));
        for (record, value) in reads {
            let _ = writeln!(text, "        {record} reads {value}");
        }
    }
    text
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: &u64| format!("{} ms", us.div_ceil(1000));
        match self {
            Self::Commit { node, writes } => write!(f, "n{node} is asked to commit {}", in_words(writes)),
            Self::Session { client, node, plan: Plan::Read } => {
                write!(f, "client {client} reads everything at n{node}")
            }
            Self::Session { client, node, plan: Plan::Retry } => {
                write!(f, "client {client} asks n{node} for its last keyed commit again")
            }
            Self::Session { client, node, plan: Plan::Write { writes, says, key } } => {
                write!(f, "client {client} asks n{node} to commit {}", in_words(writes))?;
                if *says {
                    f.write_str(", saying what it has seen")?;
                }
                key.map_or(Ok(()), |key| write!(f, ", under idempotency key {key}"))
            }
            Self::Count { node, record, field } => {
                write!(f, "n{node} is asked for the size of {} {field}", record.key)
            }
            Self::Check { node } => write!(f, "all that n{node} holds is compared with the specification"),
            Self::Cut { link: (a, b), for_us } => {
                write!(f, "the link of n{a} and n{b} is cut for {}", ms(for_us))
            }
            Self::Isolate { node, for_us } => write!(f, "all links of n{node} are cut for {}", ms(for_us)),
            Self::IsolateRegion { region, for_us } => {
                write!(f, "all links of region r{region} to others are cut for {}", ms(for_us))
            }
            Self::CutWay { from, to, for_us } => {
                write!(f, "frames from n{from} to n{to} stall for {}", ms(for_us))
            }
            Self::Flap { link: (a, b), times, each_us } => {
                write!(f, "the link of n{a} and n{b} is cut {times} times for {} each", ms(each_us))
            }
            Self::Pause { node, for_us } => write!(f, "n{node} stands still for {}", ms(for_us)),
            Self::SlowDisk { node, fsync_us, for_us } => {
                write!(f, "a sync of the disk of n{node} takes {}, for {}", ms(fsync_us), ms(for_us))
            }
            Self::RefusingDisk { node, for_us } => {
                write!(f, "the disk of n{node} refuses writes for {}", ms(for_us))
            }
            Self::PowerCut { node, for_us } => {
                write!(f, "the power of n{node} goes, and it starts again after {}", ms(for_us))
            }
            Self::Reset { link: (a, b) } => write!(f, "the connection of n{a} and n{b} is reset"),
            Self::Crash { node, for_us } => {
                write!(f, "n{node} is killed, and starts again after {}", ms(for_us))
            }
            Self::Stop { node, for_us } => {
                write!(f, "n{node} is told to stop, and starts again {} after it has", ms(for_us))
            }
            Self::Clock { node, offset_ms } => write!(f, "the clock of n{node} is set {offset_ms} ms off"),
            Self::Backup { node } => write!(f, "the disk of n{node} is copied"),
            Self::Rollback { nodes } => {
                write!(f, "earlier copies of their disks are put back at nodes {nodes:?}")
            }
            Self::Copy { node } => {
                write!(f, "a second process starts on a copy of the directory of n{node}")
            }
        }
    }
}

/// Writes as somebody would say them: `k1: counter += 3, set += a b; k2: delete`.
pub(crate) fn in_words(writes: &[Write]) -> String {
    let write = |write: &Write| {
        let ops: Vec<_> = write.ops.iter().map(op).collect();
        format!("{}: {}", write.record.key, ops.join(", "))
    };
    writes.iter().map(write).collect::<Vec<_>>().join("; ")
}

/// What a node answers.
pub(crate) fn answer_in_words(reply: &Reply) -> String {
    match reply {
        Reply::Committed { commit: Some((dot, _)), repeated: true, .. } => format!("done before, as {dot}"),
        Reply::Committed { commit: Some((dot, _)), .. } => format!("done, as {dot}"),
        Reply::Committed { commit: None, .. } => "done: nothing changes".into(),
        Reply::Refused(refusal) => format!("refused: {refusal}"),
        Reply::Stopping => "refused: it stops".into(),
        Reply::Status(_) => "its status".into(),
    }
}

fn op(op: &Op) -> String {
    let names = |members: &[godwit_core::ids::Member]| {
        members.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(" ")
    };
    match op {
        Op::Set { field, value } => format!("{field} = {}", value.as_str()),
        Op::Incr { field, by } => format!("{field} += {by}"),
        Op::Enable { field } => format!("enable {field}"),
        Op::Disable { field } => format!("disable {field}"),
        Op::Add { field, members } => format!("add {} to {field}", names(members)),
        Op::Remove { field, members } => format!("remove {} from {field}", names(members)),
        Op::ZAdd { field, scores } => format!("zadd {scores:?} to {field}"),
        Op::ZIncr { field, member, by } => format!("zincr {member} of {field} by {by}"),
        Op::ZRemove { field, members } => format!("zremove {} from {field}", names(members)),
        Op::Observe { field, members } => format!("observe {} in {field}", names(members)),
        Op::ObserveRanks { field, ranks } => format!("observe ranks {ranks:?} in {field}"),
        Op::Edit { field, patch } => format!("edit {field} {}", patch.as_str()),
        Op::Change { field, changes } => {
            let hashes: Vec<String> = changes.iter().map(|change| change.change.hash.to_string()).collect();
            format!("change {field} {}", hashes.join(" "))
        }
        Op::ExpireAt { at_ms } => format!("expire at {at_ms}"),
        Op::Expire { in_ms } => format!("expire in {in_ms} ms"),
        Op::Persist => "persist".into(),
        Op::Clear { field } => format!("clear {field}"),
        Op::Delete => "delete".into(),
    }
}

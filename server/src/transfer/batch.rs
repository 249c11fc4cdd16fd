//! Lines of an export, gathered into batches of writes.
//!
//! Where a batch ends depends on its lines alone, so that an import which is resumed at the beginning of a batch makes the
//! same batches again: their idempotency keys are made of their lines' numbers.

use std::io::{self, BufRead, Read};

use serde_json::value::RawValue;

use super::line::{FieldLine, Line, RecordLine, Totals};

/// Of a line: more than the record of a node with the default limits can have.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a batch holds at most, unless it is one line. All are below the API's default limits.
const LINES_MAX: usize = 1_000;
const OPS_MAX: usize = 5_000;
const MEMBERS_MAX: usize = 5_000;
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// A line as operations.
#[derive(Debug)]
pub(super) struct Item {
    /// Its number, from 1.
    pub(super) line: u64,
    pub(super) key: String,
    /// Whether it is not the first line of its record.
    pub(super) continues: bool,
    /// Whether it must come after those lines.
    pub(super) follows: bool,
    /// Operations, as JSON with commas between them; those on registers with siblings are not among them.
    pub(super) ops: String,
    /// Registers with siblings: the name, and the values, the winner last.
    pub(super) contested: Vec<(String, Vec<Box<RawValue>>)>,
    /// The operation that comes last in each commit: when the record expires. Of one that has expired by then nothing is left.
    pub(super) expires: Option<String>,
    ops_count: usize,
    members: usize,
    bytes: usize,
}

/// What one request writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    ops: usize,
    members: usize,
    bytes: usize,
    /// Bytes of the input from the batch before to its end.
    pub(super) read: u64,
}

/// What a line is wrong with.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("line {0}: {1}")]
    Wrong(u64, String),
    #[error("reading line {0}: {1}")]
    Input(u64, io::Error),
}

/// Reads batches from an export.
#[derive(Debug)]
pub(super) struct Batches<R> {
    input: R,
    /// Lines before this one are passed over.
    from: u64,
    drop_shadowed: bool,
    /// Lines read.
    line: u64,
    /// Bytes read, and how many of them batches have told of.
    position: u64,
    told: u64,
    /// The item that did not fit into the batch before.
    left: Option<Item>,
    /// What was read since the last header.
    found: Totals,
    last_key: Option<String>,
    ended: bool,
}

impl<R: BufRead> Batches<R> {
    pub(super) fn new(input: R, from: u64, drop_shadowed: bool) -> Self {
        let (found, last_key) = (Totals::default(), None);
        Self {
            input,
            from,
            drop_shadowed,
            line: 0,
            position: 0,
            told: 0,
            left: None,
            found,
            last_key,
            ended: false,
        }
    }

    /// Whether the last line read was an end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next batch; `None` at the end of the input. Nothing is read after an error.
    pub(super) fn next(&mut self) -> Result<Option<Batch>, LineError> {
        let mut batch = Batch::default();
        loop {
            let item = match self.left.take() {
                Some(item) => item,
                None => match self.item()? {
                    Some(item) => item,
                    None => break,
                },
            };
            if !batch.takes(&item) {
                self.left = Some(item);
                break;
            }
            batch.push(item);
        }
        let end = self.position - self.left.as_ref().map_or(0, |item| item.bytes as u64);
        batch.read = end - std::mem::replace(&mut self.told, end);
        Ok((!batch.items.is_empty()).then_some(batch))
    }

    fn item(&mut self) -> Result<Option<Item>, LineError> {
        while let Some(text) = self.text()? {
            let number = self.line;
            let wrong = |detail: String| LineError::Wrong(number, detail);
            if text.trim().is_empty() {
                continue;
            }
            let line = Line::parse(&text).map_err(wrong)?;
            if number == 1 && !matches!(line, Line::Header) {
                return Err(wrong("an export begins with a header, {\"godwit_export\": …}".to_owned()));
            }
            match line {
                Line::Header => (self.found, self.last_key, self.ended) = (Totals::default(), None, false),
                Line::End(totals) if totals == self.found => self.ended = true,
                Line::End(totals) => {
                    let (told, found) = (totals, self.found);
                    return Err(wrong(format!(
                        "the export had {} records on {} lines, and {} on {} were read: lines are missing, or there are more",
                        told.records, told.lines, found.records, found.lines
                    )));
                }
                Line::Record(_) if self.ended => {
                    return Err(wrong("there is a record after the end".to_owned()));
                }
                Line::Record(record) => {
                    if record.continues && self.last_key.as_ref() != Some(&record.key) {
                        let key = &record.key;
                        return Err(wrong(format!(
                            "it continues the record {key:?}, which is not before it"
                        )));
                    }
                    self.found.lines += 1;
                    self.found.records += u64::from(!record.continues);
                    self.last_key = Some(record.key.clone());
                    let item = item(number, record, text.len(), self.drop_shadowed).map_err(wrong)?;
                    if number >= self.from && !(item.ops.is_empty() && item.contested.is_empty()) {
                        return Ok(Some(item));
                    }
                }
            }
        }
        Ok(None)
    }

    fn text(&mut self) -> Result<Option<String>, LineError> {
        let number = self.line + 1;
        let mut bytes = Vec::new();
        let mut limited = self.input.by_ref().take(LINE_BYTES_MAX as u64);
        limited.read_until(b'\n', &mut bytes).map_err(|error| LineError::Input(number, error))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line = number;
        self.position += bytes.len() as u64;
        if bytes.len() == LINE_BYTES_MAX {
            return Err(LineError::Wrong(number, format!("it has more than {LINE_BYTES_MAX} bytes")));
        }
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| LineError::Wrong(number, "it is not UTF-8".to_owned()))
    }
}

impl Batch {
    fn takes(&self, item: &Item) -> bool {
        self.items.is_empty()
            || (self.items.len() < LINES_MAX
                && self.ops + item.ops_count <= OPS_MAX
                && self.members + item.members <= MEMBERS_MAX
                && self.bytes + item.bytes <= BYTES_MAX)
    }

    fn push(&mut self, item: Item) {
        self.ops += item.ops_count;
        self.members += item.members;
        self.bytes += item.bytes;
        self.items.push(item);
    }
}

fn item(line: u64, record: RecordLine, bytes: usize, drop_shadowed: bool) -> Result<Item, String> {
    let RecordLine { key, continues, expires, fields } = record;
    if fields.is_empty() {
        return Err(format!("the record {key:?} has no fields"));
    }
    let (mut ops, mut contested, mut members, mut follows) = (Vec::new(), Vec::new(), 0, false);
    for part in fields {
        if part.shadowed && drop_shadowed {
            continue;
        }
        if part.shadowed {
            return Err(format!(
                "the field {:?} has several types at once, which only concurrent writes can make: --drop-shadowed leaves out those that a plain read does not show",
                part.field
            ));
        }
        members += part.members.len() + part.scores.len() + part.ranks.len() + part.changes.len();
        follows |= !part.changes.is_empty();
        let op = operation(part).map_err(|(field, detail)| format!("the field {field:?} {detail}"))?;
        match op {
            Operation::Plain(op) => ops.push(op),
            Operation::Contested(field, values) => contested.push((field, values)),
        }
    }
    let expires = expires.map(|at| format!(r#"{{"op":"expire","at":{}}}"#, serde_json::Value::from(at)));
    if !ops.is_empty() {
        ops.extend(expires.clone());
    }
    let ops_count = ops.len() + contested.len();
    Ok(Item {
        line,
        key,
        continues,
        follows: follows && continues,
        ops: ops.join(","),
        contested,
        expires,
        ops_count,
        members,
        bytes,
    })
}

enum Operation {
    Plain(String),
    Contested(String, Vec<Box<RawValue>>),
}

fn operation(part: FieldLine) -> Result<Operation, (String, String)> {
    let FieldLine { field, r#type, value, mut siblings, members, scores, ranks, changes, shadowed: _ } = part;
    let name = serde_json::Value::from(field.as_str());
    let refused = |detail: &str| Err((field.clone(), detail.to_owned()));
    let has = (!siblings.is_empty(), !members.is_empty(), !scores.is_empty(), !ranks.is_empty());
    if !changes.is_empty() || r#type == "document" {
        return match (value, has) {
            (None, (false, false, false, false)) if r#type == "document" && !changes.is_empty() => {
                let changes = serde_json::Value::from(changes);
                Ok(Operation::Plain(format!(r#"{{"op":"change","field":{name},"changes":{changes}}}"#)))
            }
            _ => refused("does not have what its type has: a document has `changes`, and no other type has"),
        };
    }
    match (r#type.as_str(), value, has) {
        ("register", Some(value), (false, false, false, false)) => Ok(Operation::Plain(set(&name, &value))),
        ("register", Some(value), (true, false, false, false)) => {
            siblings.push(value);
            Ok(Operation::Contested(field, siblings))
        }
        ("counter", Some(value), (false, false, false, false)) => {
            match serde_json::from_str::<i64>(value.get()) {
                Ok(by) => Ok(Operation::Plain(format!(r#"{{"op":"incr","field":{name},"by":{by}}}"#))),
                Err(_) => refused("is a counter whose value is not an integer of 64 bits"),
            }
        }
        ("flag", None, (false, false, false, false)) => {
            Ok(Operation::Plain(format!(r#"{{"op":"enable","field":{name}}}"#)))
        }
        ("set", None, (false, true, false, false)) => {
            let members = serde_json::Value::from(members);
            Ok(Operation::Plain(format!(r#"{{"op":"add","field":{name},"members":{members}}}"#)))
        }
        ("zset", None, (false, false, true, false)) => {
            let score = |(member, score): (String, Box<RawValue>)| {
                format!("{}:{}", serde_json::Value::from(member), score.get())
            };
            let scores = scores.into_iter().map(score).collect::<Vec<_>>().join(",");
            Ok(Operation::Plain(format!(r#"{{"op":"zadd","field":{name},"scores":{{{scores}}}}}"#)))
        }
        ("unique", None, (false, false, false, true)) => {
            let ranks = ranks.iter().map(|(register, rank)| format!("[{register},{rank}]"));
            let ranks = ranks.collect::<Vec<_>>().join(",");
            Ok(Operation::Plain(format!(r#"{{"op":"observe","field":{name},"ranks":[{ranks}]}}"#)))
        }
        ("register" | "counter" | "flag" | "set" | "zset" | "unique", ..) => refused(
            "does not have what its type has: a register and a counter `value`, a set `members`, a zset `scores`, a unique \
             `ranks`, a flag nothing",
        ),
        _ => refused(&format!(
            "has the type {type:?}, which this version of godwit cannot import: use the version that wrote the export"
        )),
    }
}

/// The operation that sets a register.
pub(super) fn set(field: &serde_json::Value, value: &RawValue) -> String {
    format!(r#"{{"op":"set","field":{field},"value":{}}}"#, value.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"godwit_export":1,"cluster":"c","node":"n","namespace":"ns","time":"t"}"#;

    fn flag(key: &str) -> String {
        format!(r#"{{"key":"{key}","fields":[{{"field":"f","type":"flag"}}]}}"#)
    }

    /// The lines of each batch, and what ended them.
    fn batches(lines: &[String], from: u64) -> (Vec<Vec<u64>>, Result<bool, String>) {
        let text =
            std::iter::once(HEADER).chain(lines.iter().map(String::as_str)).collect::<Vec<_>>().join("\n");
        let mut batches = Batches::new(text.as_bytes(), from, false);
        let mut found = Vec::new();
        loop {
            match batches.next() {
                Ok(Some(batch)) => found.push(batch.items.iter().map(|item| item.line).collect()),
                Ok(None) => return (found, Ok(batches.has_ended())),
                Err(error) => return (found, Err(error.to_string())),
            }
        }
    }

    #[test]
    fn a_resumed_import_makes_the_same_batches() {
        let add = |i: usize| {
            let members = (0..1 + i % 700).map(|m| format!("\"{m}\"")).collect::<Vec<_>>().join(",");
            format!(r#"{{"key":"k{i}","fields":[{{"field":"s","type":"set","members":[{members}]}}]}}"#)
        };
        let mut lines: Vec<String> =
            (0..500).map(add).chain((0..2_500).map(|i| flag(&format!("l{i}")))).collect();
        lines.push(r#"{"end":{"records":3000,"lines":3000}}"#.to_owned());
        let (all, ended) = batches(&lines, 1);
        assert_eq!(ended, Ok(true));
        assert_eq!(all.concat(), (2..=3_001).collect::<Vec<u64>>());
        let text =
            std::iter::once(HEADER).chain(lines.iter().map(String::as_str)).collect::<Vec<_>>().join("\n");
        let (mut reading, mut read) = (Batches::new(text.as_bytes(), 1, false), 0);
        while let Some(batch) = reading.next().unwrap() {
            read += batch.read;
        }
        assert_eq!(read, text.len() as u64, "each byte belongs to a batch");
        assert!(all.len() > 10 && all.iter().all(|batch| batch.len() <= LINES_MAX));
        for (i, batch) in all.iter().enumerate() {
            assert_eq!(batches(&lines, batch[0]).0, all[i..]);
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        let one = |field: &str| format!(r#"{{"key":"k","fields":[{{"field":"f",{field}}}]}}"#);
        let cases = [
            (one(r#""type":"zset""#), "does not have what its type has"),
            (one(r#""type":"zset","members":["a"]"#), "does not have"),
            (one(r#""type":"unique","ranks":[]"#), "does not have"),
            (one(r#""type":"document""#), "a document has `changes`"),
            (one(r#""type":"set","changes":["AA=="]"#), "a document has `changes`"),
            (one(r#""type":"graph""#), "type \"graph\""),
            (one(r#""type":"counter","value":9223372036854775808"#), "64 bits"),
            (one(r#""type":"counter","value":1.0"#), "64 bits"),
            (one(r#""type":"counter""#), "does not have what its type has"),
            (one(r#""type":"register","members":["a"],"value":1"#), "does not have"),
            (one(r#""type":"flag","value":true"#), "does not have"),
            (one(r#""type":"set"}"#), "line 3: not a record"),
            (one(r#""type":"set""#), "does not have"),
            (one(r#""type":"register","value":1,"shadowed":true"#), "--drop-shadowed"),
            (r#"{"key":"k","fields":[]}"#.to_owned(), "no fields"),
            (
                r#"{"key":"x","continues":true,"fields":[{"field":"f","type":"flag"}]}"#.to_owned(),
                "continues",
            ),
            (r#"{"end":{"records":2,"lines":1}}"#.to_owned(), "lines are missing"),
        ];
        for (line, says) in cases {
            let (found, outcome) = batches(&[flag("a"), line.clone()], 1);
            let told = outcome.unwrap_err();
            assert!(told.starts_with("line 3: ") && told.contains(says), "{line}: {told}");
            assert!(found.is_empty(), "{line}: what stands before a wrong line in its batch is not written");
        }
        let (_, outcome) =
            batches(&[flag("a"), r#"{"end":{"records":1,"lines":1}}"#.to_owned(), flag("b")], 1);
        assert_eq!(outcome, Err("line 4: there is a record after the end".to_owned()));
        assert_eq!(batches(&[flag("a")], 1).1, Ok(false));
        let headless = Batches::new(flag("a").as_bytes(), 1, false).next().unwrap_err().to_string();
        assert!(headless.starts_with("line 1: an export begins with a header"), "{headless}");
        // Exports may follow one another.
        let end = || r#"{"end":{"records":1,"lines":1}}"#.to_owned();
        let (found, outcome) = batches(&[flag("a"), end(), HEADER.to_owned(), flag("a"), end()], 1);
        assert_eq!((found, outcome), (vec![vec![2, 5]], Ok(true)));
    }

    #[test]
    fn siblings_come_before_the_winner() {
        let line = r#"{"key":"k","fields":[{"field":"f","type":"register","value":1.0,"siblings":[2,3e0]}]}"#;
        let text = format!("{HEADER}\n{line}\n");
        let batch = Batches::new(text.as_bytes(), 1, false).next().unwrap().unwrap();
        let (field, values) = &batch.items[0].contested[0];
        let values: Vec<&str> = values.iter().map(|value| value.get()).collect();
        assert_eq!((field.as_str(), values, batch.items[0].ops.as_str()), ("f", vec!["2", "3e0", "1.0"], ""));
    }
}

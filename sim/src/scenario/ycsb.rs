//! YCSB's core workloads, from their property files, as requests of the API.
//!
//! | YCSB | here |
//! |---|---|
//! | record | a record of registers `field0`, `field1`, … |
//! | read | the whole record |
//! | update | one field is set (all, with `writeallfields`) |
//! | insert | a new record |
//! | scan | a listing of keys from one on |
//! | read-modify-write | the record is read, then one field is set |
//!
//! `zipfian` weighs the item of rank r with 1/r (YCSB: 1/r^0.99), over scrambled keys; `latest` does so from the newest
//! record back. Weights are integers, so that a seed draws the same everywhere.

use godwit_core::ids::{Field, Key, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::rng::Rng;

use super::requests::Request;
use super::units;

/// The most records.
pub const RECORDS_MAX: usize = 10_000;
/// The most bytes of a record's values.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

const FIELDS_MAX: usize = 100;
const SCAN_MAX: usize = 1_000;
const WEIGHT_ONE: u64 = 1 << 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distribution {
    Uniform,
    Zipfian,
    Latest,
}

/// A workload and how far it is.
#[derive(Debug, Clone)]
pub(super) struct Ycsb {
    namespace: Namespace,
    /// Shares in millionths: read, update, insert, scan, read-modify-write.
    shares: [u64; 5],
    distribution: Distribution,
    /// Records at the beginning.
    pub(super) records: usize,
    /// Operations that the file asks for.
    pub(super) operations: u64,
    fields: usize,
    field_bytes: usize,
    write_all: bool,
    scan_max: usize,
    /// Records by now.
    present: usize,
    /// Sums of weights by rank.
    weights: Vec<u64>,
    /// Numbers of values, so that each is told from all others.
    values: u64,
}

impl Ycsb {
    /// Reads a property file; `records` is used instead of its `recordcount`.
    pub(super) fn parse(text: &str, namespace: Namespace, records: Option<usize>) -> Result<Self, String> {
        let mut ycsb = Self {
            namespace,
            shares: [0; 5],
            distribution: Distribution::Uniform,
            records: records.unwrap_or(RECORDS_MAX),
            operations: 1_000,
            fields: 10,
            field_bytes: 100,
            write_all: false,
            scan_max: SCAN_MAX,
            present: 0,
            weights: Vec::new(),
            values: 0,
        };
        // As in YCSB, what the file leaves out has a default.
        ycsb.shares[0] = 950_000;
        ycsb.shares[1] = 50_000;
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let Some((name, value)) = line.split_once(['=', ':']) else {
                return Err(format!("line {number}: {line:?} is not `name=value`"));
            };
            let told = |what: &str| format!("line {number}: {}: {what}", name.trim());
            ycsb.property(name.trim(), value.trim(), records).map_err(|what| told(&what))?;
        }
        if ycsb.shares.iter().sum::<u64>() == 0 {
            return Err("all proportions are 0: give readproportion or another one".into());
        }
        if ycsb.fields * ycsb.field_bytes > RECORD_BYTES_MAX {
            return Err(format!("fieldcount times fieldlength must be at most {RECORD_BYTES_MAX} bytes"));
        }
        ycsb.present = ycsb.records;
        (0..ycsb.records).for_each(|_| ycsb.weigh());
        Ok(ycsb)
    }

    fn property(&mut self, name: &str, value: &str, records: Option<usize>) -> Result<(), String> {
        let number = |least: usize, most: usize| {
            let number = value.parse::<usize>().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| format!("{value:?} is not a number from {least} to {most}"))
        };
        let share =
            || units::millionth_parts(value).ok_or_else(|| format!("{value:?} is not a share like 0.95"));
        match name {
            "recordcount" if records.is_none() => {
                self.records = number(1, RECORDS_MAX)
                    .map_err(|error| format!("{error}: give `records` in the scenario to use fewer"))?;
            }
            "operationcount" => self.operations = number(1, usize::MAX)? as u64,
            "readproportion" => self.shares[0] = share()?,
            "updateproportion" => self.shares[1] = share()?,
            "insertproportion" => self.shares[2] = share()?,
            "scanproportion" => self.shares[3] = share()?,
            "readmodifywriteproportion" => self.shares[4] = share()?,
            "fieldcount" => self.fields = number(1, FIELDS_MAX)?,
            "fieldlength" => self.field_bytes = number(1, RECORD_BYTES_MAX)?,
            "maxscanlength" => self.scan_max = number(1, SCAN_MAX)?,
            "writeallfields" => self.write_all = value == "true",
            "requestdistribution" => {
                self.distribution = match value {
                    "uniform" => Distribution::Uniform,
                    "zipfian" => Distribution::Zipfian,
                    "latest" => Distribution::Latest,
                    other => return Err(format!("{other:?} is none of uniform, zipfian, latest")),
                };
            }
            // How YCSB runs and measures is no part of the mix.
            _ => {}
        }
        Ok(())
    }

    fn weigh(&mut self) {
        let last = self.weights.last().copied().unwrap_or(0);
        self.weights.push(last + WEIGHT_ONE / (self.weights.len() as u64 + 1));
    }

    /// The writes that put the records there, before clients begin.
    pub(super) fn load(&mut self) -> Vec<Write> {
        (0..self.records).map(|at| self.whole(at, "loaded")).collect()
    }

    /// The next request of a client in a region.
    pub(super) fn draw(&mut self, rng: &mut Rng, region: &str) -> Request {
        let mut left = rng.below(self.shares.iter().sum());
        let kind = self.shares.iter().position(|share| match left.checked_sub(*share) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        match kind.unwrap_or(0) {
            0 => Request::Read(vec![(self.record(self.pick(rng)), None)]),
            1 => Request::Write(vec![self.update(rng, region)]),
            2 => {
                let at = self.present;
                self.present += 1;
                self.weigh();
                Request::Write(vec![self.whole(at, region)])
            }
            3 => {
                let after = self.pick(rng).checked_sub(1).map(|before| key(before).as_str().to_string());
                let limit = 1 + rng.below(self.scan_max as u64) as usize;
                Request::List { namespace: self.namespace.clone(), prefix: String::new(), after, limit }
            }
            _ => {
                let update = self.update(rng, region);
                Request::ReadThenWrite(update.record.clone(), vec![update])
            }
        }
    }

    /// Which record.
    fn pick(&self, rng: &mut Rng) -> usize {
        let ranked = |rng: &mut Rng, of: usize| {
            let drawn = rng.below(self.weights[of - 1]);
            self.weights.partition_point(|sum| *sum <= drawn)
        };
        match self.distribution {
            Distribution::Uniform => rng.below(self.present as u64) as usize,
            Distribution::Zipfian => {
                let rank = ranked(rng, self.records);
                Rng::new(rank as u64).below(self.records as u64) as usize
            }
            Distribution::Latest => self.present - 1 - ranked(rng, self.present),
        }
    }

    fn update(&mut self, rng: &mut Rng, region: &str) -> Write {
        let at = self.pick(rng);
        if self.write_all {
            return self.whole(at, region);
        }
        let field = rng.below(self.fields as u64) as usize;
        Write { record: self.record(at), ops: vec![self.set(field, region)] }
    }

    fn whole(&mut self, at: usize, region: &str) -> Write {
        Write {
            record: self.record(at),
            ops: (0..self.fields).map(|field| self.set(field, region)).collect(),
        }
    }

    fn set(&mut self, field: usize, region: &str) -> Op {
        self.values += 1;
        let text = format!("{region} {} ", self.values);
        let filled: String =
            text.chars().chain("lorem ipsum ".chars().cycle()).take(self.field_bytes).collect();
        let value = Json::parse(&serde_json::Value::String(filled).to_string()).expect("a text is JSON");
        Op::Set { field: Field::new(format!("field{field}")).expect("a short name"), value }
    }

    fn record(&self, at: usize) -> RecordId {
        RecordId { namespace: self.namespace.clone(), key: key(at) }
    }
}

fn key(at: usize) -> Key {
    Key::new(format!("user{at:08}")).expect("a short name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str, count: usize) -> Vec<Request> {
        let namespace = Namespace::new("ycsb").expect("a constant name");
        let mut ycsb = Ycsb::parse(text, namespace, Some(100)).expect("a workload");
        let mut rng = Rng::new(1);
        (0..count).map(|_| ycsb.draw(&mut rng, "eu")).collect()
    }

    #[test]
    fn proportions_are_kept() {
        let text = "# E\nreadproportion=0\nupdateproportion=0\nscanproportion=0.95\ninsertproportion = 0.05\n\
                    requestdistribution=zipfian\nmaxscanlength=10\nmeasurementtype=histogram\n";
        let lists = drawn(text, 10_000).iter().filter(|request| request.kind() == "list").count();
        assert!((9_400..=9_600).contains(&lists), "{lists}");
    }

    #[test]
    fn zipfian_has_favourites_and_latest_prefers_the_new() {
        let key = |request: &Request| match request {
            Request::Read(records) => records[0].0.key.to_string(),
            other => panic!("{other:?}"),
        };
        let reads = |distribution: &str| {
            drawn(
                &format!("readproportion=1\nupdateproportion=0\nrequestdistribution={distribution}"),
                10_000,
            )
        };
        let mut counts = std::collections::BTreeMap::new();
        reads("zipfian").iter().for_each(|request| *counts.entry(key(request)).or_insert(0) += 1);
        // The harmonic number of 100 is 5.19: the first of them is asked for once in five times.
        assert!(counts.values().max().is_some_and(|most| (1_800..4_000).contains(most)), "{counts:?}");
        let newest = reads("latest").iter().filter(|request| key(request) == "user00000099").count();
        assert!((1_800..2_100).contains(&newest), "{newest}");
    }

    #[test]
    fn what_it_does_not_have_is_told() {
        let namespace = || Namespace::new("ycsb").expect("a constant name");
        let told = |text: &str| Ycsb::parse(text, namespace(), None).expect_err("a wrong file");
        assert!(told("a\n").starts_with("line 1"));
        assert!(told("\nrequestdistribution=hotspot").contains("none of uniform"));
        assert!(told("recordcount=1000000").contains("give `records`"));
        assert!(told("readproportion=0\nupdateproportion=0").contains("all proportions"));
    }
}

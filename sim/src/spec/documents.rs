//! Documents of the specification: which changes make one, and what Automerge makes of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use automerge::{AutoSerde, Automerge, Change};

use super::ops::Gift;
use super::{EventSet, Given, History, SpecChange, SpecOp, SpecValue};

/// The changes among what survives, by hash.
pub(super) fn hashes(survivors: &[Cow<'_, Given>]) -> BTreeSet<String> {
    let changes = survivors.iter().filter_map(|given| change(given));
    changes.map(|change| change.hash.clone()).collect()
}

/// Whether these build on something that neither survives nor is among them.
pub(super) fn lacks(survivors: &[Cow<'_, Given>], changes: &[SpecChange]) -> bool {
    let mut here = hashes(survivors);
    here.extend(changes.iter().map(|change| change.hash.clone()));
    changes.iter().flat_map(|change| &change.deps).any(|dep| !here.contains(dep))
}

fn change(given: &Given) -> Option<&SpecChange> {
    match &given.gift {
        Gift::Change(change) => Some(change),
        _ => None,
    }
}

impl History {
    /// The document of which these changes survive in a view, after pending operations.
    pub(super) fn document(
        &self,
        record: &str,
        field: &str,
        view: &EventSet,
        pending: &[SpecOp],
        survivors: &[Cow<'_, Given>],
    ) -> Option<SpecValue> {
        let mut wanted: Vec<String> = hashes(survivors).into_iter().collect();
        if wanted.is_empty() {
            return None;
        }
        let givens = self.records.get(record).and_then(|fields| fields.get(field)).into_iter().flatten();
        let visible = givens.filter(|given| given.by.is_some_and(|by| view.contains(by)));
        let mut all: BTreeMap<&str, &SpecChange> =
            visible.filter_map(change).map(|change| (change.hash.as_str(), change)).collect();
        for op in pending {
            if let SpecOp::Change { field: of, changes } = op
                && of == field
            {
                all.extend(changes.iter().map(|change| (change.hash.as_str(), change)));
            }
        }
        let mut made_of: BTreeMap<String, &SpecChange> = BTreeMap::new();
        while let Some(hash) = wanted.pop() {
            if let Some(change) = all.get(hash.as_str()).filter(|_| !made_of.contains_key(&hash)) {
                wanted.extend(change.deps.iter().cloned());
                made_of.insert(hash, change);
            }
        }
        let json = self.merged.borrow_mut().of(&made_of);
        Some(SpecValue::Document(made_of.into_keys().collect(), json))
    }
}

/// What changes were merged to, by their hashes: the same ones are read again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged(BTreeMap<Vec<String>, String>);

/// The most merges remembered.
const MERGED_MAX: usize = 4096;

impl Merged {
    fn of(&mut self, changes: &BTreeMap<String, &SpecChange>) -> String {
        let name: Vec<String> = changes.keys().cloned().collect();
        if let Some(json) = self.0.get(&name) {
            return json.clone();
        }
        let mut document = Automerge::new();
        let changes = changes.values().map(|change| Change::from_bytes(change.bytes.clone()));
        let changes: Vec<Change> = changes.collect::<Result<_, _>>().expect("changes that were made here");
        document.apply_changes(changes).expect("changes that were made here");
        let value = serde_json::to_value(AutoSerde::from(&document)).expect("a document is JSON");
        if self.0.len() == MERGED_MAX {
            self.0.clear();
        }
        self.0.insert(name, value.to_string());
        value.to_string()
    }
}

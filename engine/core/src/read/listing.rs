//! The records of a namespace, by key; and namespaces.
//!
//! Marks say which records have rows; rows may be left although nothing of them lives (a counter that was cleared),
//! so each mark is checked before it is shown. A page looks at no further record once it has looked at
//! [`PageLimits::rows_max`] rows and marks, and then says where to go on, even if it found nothing.

use std::ops::ControlFlow;

use super::rows::{Budget, Record, each_type};
use super::{Page, PageLimits, ReadAt, ReadError};
use crate::codec::CodecError;
use crate::ids::{Key, Namespace, RecordId};
use crate::keys;
use crate::store::{Family, StoreError, StoreRead};

/// Marks and rows that are looked at to find out whether a namespace has live records.
const MARKS_MAX: usize = 100_000;

/// The keys of live records that begin with a prefix (of characters, possibly none), after a name (exclusive; it need
/// not be a key), in byte order.
pub fn list_keys(
    store: &impl StoreRead,
    at: ReadAt,
    namespace: &Namespace,
    prefix: &str,
    after: Option<&str>,
    limits: PageLimits,
) -> Result<Page<Key>, ReadError> {
    let marks = keys::key_marks(namespace);
    let mark = |key: &str| [marks.as_slice(), key.as_bytes()].concat();
    let first = mark(prefix);
    let end = keys::after_prefix(&first);
    // No key holds a zero byte, so this is the first mark after that key's.
    let from = after.map_or(first.clone(), |after| first.max([mark(after), vec![0]].concat()));

    let budget = Budget::unlimited();
    let mut page = Page { items: Vec::<Key>::new(), next: None };
    let (mut bytes, mut looked_at) = (0, 0);
    let mut last: Option<Key> = None;
    let mut outcome = Ok(());
    store.scan(Family::Keys, &from, &end, &mut |found, _| {
        if budget.rows_seen() + looked_at >= limits.rows_max && last.is_some() {
            page.next = last.take();
            return ControlFlow::Break(());
        }
        let key = match parse(&marks, found) {
            Ok(key) => key,
            Err(error) => {
                outcome = Err(StoreError::damaged("keys")(error).into());
                return ControlFlow::Break(());
            }
        };
        looked_at += 1;
        let record = RecordId { namespace: namespace.clone(), key };
        match exists(store, at, &record, &budget) {
            Ok(true) => {
                bytes += record.key.as_str().len();
                if limits.is_full(page.items.len(), bytes) {
                    page.next = page.items.last().cloned();
                    return ControlFlow::Break(());
                }
                page.items.push(record.key.clone());
            }
            Ok(false) => {}
            Err(error) => {
                outcome = Err(error);
                return ControlFlow::Break(());
            }
        }
        last = Some(record.key);
        ControlFlow::Continue(())
    })?;
    outcome.map(|()| page)
}

/// The namespaces after one in which there are live records, in byte order.
pub fn list_namespaces(
    store: &impl StoreRead,
    at: ReadAt,
    after: Option<&Namespace>,
    most: usize,
) -> Result<Vec<Namespace>, ReadError> {
    let beyond = |namespace: &Namespace| keys::after_prefix(&keys::key_marks(namespace));
    let mut from = after.map_or_else(Vec::new, beyond);
    let mut found = Vec::new();
    // No name begins with this byte: it is not of UTF-8.
    while found.len() < most
        && let Some((mark, _)) = store.first(Family::Keys, &from, &[0xFF])?
    {
        let name = mark.split(|&byte| byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
        let namespace = name.and_then(|name| Namespace::new(name).ok());
        let malformed = || CodecError::Malformed("a mark names no namespace".into());
        let namespace = namespace.ok_or_else(malformed).map_err(StoreError::damaged("keys"))?;
        from = beyond(&namespace);
        if has_keys(store, at, &namespace)? {
            found.push(namespace);
        }
    }
    Ok(found)
}

/// Whether there are live records in a namespace. One with more marks of dead records than [`MARKS_MAX`] before them is
/// taken to have some.
pub fn has_keys(store: &impl StoreRead, at: ReadAt, namespace: &Namespace) -> Result<bool, ReadError> {
    let limits = PageLimits { items_max: 1, bytes_max: 1, rows_max: MARKS_MAX };
    let page = list_keys(store, at, namespace, "", None, limits)?;
    Ok(!page.items.is_empty() || page.next.is_some())
}

/// Whether some field has a live value.
fn exists<S: StoreRead>(
    store: &S,
    at: ReadAt,
    record: &RecordId,
    budget: &Budget,
) -> Result<bool, ReadError> {
    let record = Record::open(store, at, record, budget)?;
    let mut lives = false;
    each_type(&record, &record.prefix, |_, _, rows| {
        lives = rows.live()?;
        Ok(if lives { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(lives)
}

fn parse(marks: &[u8], mark: &[u8]) -> Result<Key, CodecError> {
    let name = mark.strip_prefix(marks).and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or_else(|| CodecError::Malformed("a mark names no key".into()))?;
    Key::new(name).map_err(|error| CodecError::Malformed(error.to_string()))
}

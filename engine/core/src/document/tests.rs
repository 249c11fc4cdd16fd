//! Tests of documents against Automerge itself.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::context::Dot;
use crate::ids::ReplicaId;
use crate::json::Json;
use crate::time::Hlc;

fn patch(text: &str) -> Patch {
    Patch::parse(&Json::parse(text).unwrap()).unwrap()
}

fn edited(document: &mut Document, actor: u8, text: &str) -> Encoded {
    document.edit(&[actor; 16], 0, &patch(text)).unwrap().unwrap()
}

fn refused(document: &mut Document, text: &str) -> String {
    let before = document.json(None).unwrap();
    let refused = match Patch::parse(&Json::parse(text).unwrap()) {
        Err(error) => error.to_string(),
        Ok(patch) => document.edit(&[9; 16], 0, &patch).unwrap_err().to_string(),
    };
    assert_eq!(document.json(None).unwrap(), before, "a refused patch changes nothing");
    refused
}

const NOTES: &str = r#"[{"op":"add","path":"/title","value":"Notes"},
    {"op":"add","path":"/tags","value":["a",1,-2.5,true,null,{"deep":"x"}]},
    {"op":"add","path":"/n","value":18446744073709551615}]"#;

#[test]
fn a_patch_is_read_back() {
    let mut document = Document::default();
    edited(&mut document, 1, NOTES);
    let all = r#"{"n":18446744073709551615,"tags":["a",1,-2.5,true,null,{"deep":"x"}],"title":"Notes"}"#;
    assert_eq!(document.json(None).unwrap(), all);
    let then = document.heads();
    edited(
        &mut document,
        1,
        r#"[{"op":"test","path":"/tags/1","value":1.0},{"op":"splice","path":"/title","index":5,"delete":0,"insert":" é😀!"},
            {"op":"remove","path":"/tags/0"},{"op":"replace","path":"/tags/0","value":[]},
            {"op":"add","path":"/tags/-","value":{}},{"op":"move","from":"/n","path":"/m~1n"},
            {"op":"copy","from":"/tags/4/deep","path":"/tags/1"}]"#,
    );
    let now =
        r#"{"m/n":18446744073709551615,"tags":[[],"x",-2.5,true,null,{"deep":"x"},{}],"title":"Notes é😀!"}"#;
    assert_eq!(document.json(None).unwrap(), now);
    assert_eq!(document.json(Some(&then)).unwrap(), all);
    assert_eq!(document.text(None, None).unwrap(), "Notes é😀!");
    assert_eq!(document.text(Some("/tags/1"), None).unwrap(), "x");
    assert_eq!(document.text(Some("/title"), Some(&then)).unwrap(), "Notes");
    edited(&mut document, 1, r#"[{"op":"splice","path":"/title","index":7,"delete":1}]"#);
    assert_eq!(document.text(Some("/title"), None).unwrap(), "Notes é!");
    edited(&mut document, 1, r#"[{"op":"replace","path":"","value":{"only":"this"}}]"#);
    assert_eq!(document.json(None).unwrap(), r#"{"only":"this"}"#);
    assert!(
        document
            .edit(&[1; 16], 0, &patch(r#"[{"op":"test","path":"/only","value":"this"}]"#))
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut document = Document::default();
    edited(&mut document, 1, NOTES);
    for (wrong, says) in [
        (r#"{}"#, "not a JSON Patch"),
        (r#"[{"op":"put","path":"/a"}]"#, "there is no \"put\""),
        (r#"[{"op":"add","path":"a","value":1}]"#, "begins with a slash"),
        (r#"[{"op":"add","path":"/a~2","value":1}]"#, "is written"),
        (r#"[{"op":"add","path":"/a"}]"#, "needs `value`"),
        (r#"[{"op":"remove","path":"/a","value":1}]"#, "does not take `value`"),
        (r#"[{"op":"add","path":"/a","value":18446744073709551616}]"#, "beyond 64-bit integers"),
        (r#"[{"op":"add","path":"/a","value":1e999}]"#, "beyond 64-bit floats"),
        (r#"[{"op":"add","path":"/new","value":1},{"op":"remove","path":"/none"}]"#, "step 1"),
        (r#"[{"op":"add","path":"/none/a","value":1}]"#, "there is nothing at"),
        (r#"[{"op":"add","path":"/title/a","value":1}]"#, "no object or array"),
        (r#"[{"op":"add","path":"/tags/7","value":1}]"#, "no index of an array of 6"),
        (r#"[{"op":"add","path":"/tags/01","value":1}]"#, "no index"),
        (r#"[{"op":"replace","path":"/tags/-","value":1}]"#, "no index"),
        (r#"[{"op":"replace","path":"","value":1}]"#, "a document is an object"),
        (r#"[{"op":"test","path":"/title","value":"x"}]"#, "is another one"),
        (r#"[{"op":"move","from":"/tags","path":"/tags/0"}]"#, "into itself"),
        (r#"[{"op":"splice","path":"/title","index":6,"delete":0,"insert":"x"}]"#, "has 5 characters"),
        (r#"[{"op":"splice","path":"/title","index":4,"delete":2}]"#, "has 5 characters"),
        (r#"[{"op":"splice","path":"/tags","index":0,"delete":0,"insert":"x"}]"#, "only texts"),
    ] {
        let said = refused(&mut document, wrong);
        assert!(said.contains(says), "{wrong}: {said}");
    }
}

#[test]
fn nesting_ends_where_it_can_be_shown() {
    let mut document = Document::default();
    let mut path = String::new();
    for _ in 0..crate::json::MAX_DEPTH - 1 {
        path.push_str("/a");
        edited(&mut document, 1, &format!(r#"[{{"op":"add","path":"{path}","value":{{}}}}]"#));
    }
    assert!(document.json(None).is_ok() && document.check_depth().is_ok());
    let deep = format!(r#"[{{"op":"add","path":"{path}/a","value":{{}}}}]"#);
    assert!(refused(&mut document, &deep).contains("nested deeper"));
    // By a value it can be made all the same; whoever admits changes looks.
    let by_value = format!(r#"[{{"op":"add","path":"{path}","value":{{"b":{{"c":{{}}}}}}}}]"#);
    edited(&mut document, 1, &by_value);
    assert_eq!(document.check_depth(), Err(DocumentError::TooDeep));
    assert_eq!(document.json(None), Err(DocumentError::TooDeep));
}

#[test]
fn a_difference_makes_the_one_of_the_other() {
    let mut document = Document::default();
    edited(&mut document, 1, NOTES);
    let from = document.heads();
    edited(
        &mut document,
        1,
        r#"[{"op":"splice","path":"/title","index":0,"delete":2,"insert":"é"},{"op":"remove","path":"/tags/1"},
            {"op":"remove","path":"/tags/1"},{"op":"add","path":"/more","value":{"list":["x",{"y":"z"}]}}]"#,
    );
    let to = document.heads();
    let (there, back) = (document.diff(&from, &to).unwrap(), document.diff(&to, &from).unwrap());
    let (before, after) = (document.json(Some(&from)).unwrap(), document.json(None).unwrap());
    edited(&mut document, 1, &back);
    assert_eq!(document.json(None).unwrap(), before, "{back}");
    edited(&mut document, 1, &there);
    assert_eq!(document.json(None).unwrap(), after, "{there}");
    assert_eq!(document.diff(&to, &to).unwrap(), "[]");
    let unknown = ChangeHash([7; 32]);
    assert_eq!(document.diff(&to, &[unknown]), Err(DocumentError::UnknownHead(unknown)));
}

fn stored(changes: &[(&Encoded, bool)]) -> BTreeMap<ChangeHash, Stored> {
    let stored = |(counter, (encoded, counts)): (usize, &(&Encoded, bool))| {
        let dot = Dot { replica: ReplicaId(1), counter: counter as u64 + 1 };
        let change = Stored { bytes: encoded.bytes.clone(), dot, hlc: Hlc(1), counts: *counts };
        (encoded.change.hash, change)
    };
    changes.iter().enumerate().map(stored).collect()
}

fn made_of(selected: &[Selected]) -> String {
    let mut document = Document::default();
    document.apply(selected.iter().map(|selected| &selected.encoded)).unwrap();
    document.json(None).unwrap()
}

#[test]
fn what_counts_brings_what_it_builds_on() {
    let mut document = Document::default();
    let first = edited(&mut document, 1, r#"[{"op":"add","path":"/a","value":1}]"#);
    let mut other = document.clone();
    let second = edited(&mut document, 1, r#"[{"op":"add","path":"/b","value":2}]"#);
    let beside = edited(&mut other, 2, r#"[{"op":"add","path":"/c","value":3}]"#);
    let all = select(stored(&[(&first, false), (&second, false), (&beside, true)])).unwrap().changes;
    assert_eq!(made_of(&all), r#"{"a":1,"c":3}"#);
    assert_eq!(select(stored(&[(&first, false), (&second, false)])).unwrap().changes, []);
    // What it builds on is not there.
    assert_eq!(select(stored(&[(&second, true)])).unwrap().changes, []);
}

#[test]
fn of_two_changes_with_one_number_one_is_left_out_everywhere() {
    let mut document = Document::default();
    let first = edited(&mut document, 1, r#"[{"op":"add","path":"/a","value":1}]"#);
    let mut twin = document.clone();
    let one = edited(&mut document, 1, r#"[{"op":"add","path":"/b","value":2}]"#);
    let other = edited(&mut twin, 1, r#"[{"op":"add","path":"/b","value":3}]"#);
    let on_one = edited(&mut document, 2, r#"[{"op":"add","path":"/on","value":2}]"#);
    let on_other = edited(&mut twin, 2, r#"[{"op":"add","path":"/on","value":3}]"#);
    let all = [&first, &one, &other, &on_one, &on_other].map(|encoded| (encoded, true));
    let kept = if one.change.hash < other.change.hash { 2 } else { 3 };
    assert_eq!(
        made_of(&select(stored(&all)).unwrap().changes),
        format!(r#"{{"a":1,"b":{kept},"on":{kept}}}"#)
    );
}

/// A change with a column that says it has more values than any memory holds.
#[test]
fn runs_without_end_are_refused() {
    let mut document = Document::default();
    let small = edited(&mut document, 1, r#"[{"op":"add","path":"/a","value":"x"}]"#);
    let body = chunk_body(&small.bytes);
    // The runs of its columns are the last bytes; each byte in turn becomes a run of 2^62 values.
    let mut refused = 0;
    for at in 30..body.len() {
        let mut long = body[..at].to_vec();
        long.extend_from_slice(&[0xff; 8]);
        long.extend_from_slice(&body[at..]);
        refused += usize::from(Change::parse(&chunk_of(1, &long)).is_err());
    }
    assert!(refused > body.len() / 2, "{refused} of {}", body.len());
    // An action column of one run of 2^40 times the same.
    let mut body = vec![0, 1, 7, 1, 1, 0, 0, 0, 1];
    body.extend_from_slice(&[0x42, 7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, 1]);
    assert_eq!(Change::parse(&chunk_of(1, &body)), Err(ChunkError::TooLarge("values of its columns")));
}

/// A column that Automerge passes over: what it writes of the change has another hash.
#[test]
fn what_automerge_would_not_write_again_is_not_admitted() {
    let change = edited(&mut Document::default(), 1, NOTES);
    let mut body = chunk_body(&change.bytes);
    let of_actions = body.windows(3).position(|columns| columns == [0x42, columns[1], 0x56]).unwrap();
    body[of_actions] = 0x54;
    let other = Encoded::parse(chunk_of(1, &body)).unwrap();
    Document::default().apply([&other]).unwrap();
    Document::default().admit([&other]).unwrap_err();
    Document::default().admit([&change]).unwrap();
}

fn chunk_body(bytes: &[u8]) -> Vec<u8> {
    let length = bytes[9..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    bytes[9 + length..].to_vec()
}

fn chunk_of(kind: u8, body: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    let mut length = Vec::new();
    let mut left = body.len();
    while left >= 0x80 {
        length.push(left as u8 | 0x80);
        left >>= 7;
    }
    length.push(left as u8);
    let hash = sha2::Sha256::digest([&[kind], length.as_slice(), body].concat());
    [&[0x85, 0x6f, 0x4a, 0x83][..], &hash[..4], &[kind], &length, body].concat()
}

#[test]
fn what_is_deflated_is_inflated_under_a_limit() {
    let mut document = Document::default();
    let long = format!(r#"[{{"op":"add","path":"/a","value":"{}"}}]"#, "x".repeat(100_000));
    let large = edited(&mut document, 1, &long);
    assert!(large.bytes.len() < 10_000 && large.change.raw_bytes > 100, "{}", large.bytes.len());
    let mut bomb = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![0; chunk::CHUNK_BYTES_MAX + 1]).unwrap();
    let bomb = chunk_of(2, &bomb.finish().unwrap());
    assert!(bomb.len() < 100_000);
    assert_eq!(Change::parse(&bomb), Err(ChunkError::TooLarge("bytes once inflated")));
}

proptest! {
    /// Whatever bytes do, Automerge is given them only once they were read here, and then fails, if at all, with an error.
    #[test]
    fn changed_bytes_never_do_harm(
        at in 0..400usize, byte: u8, cut in 0..400usize, resum: bool, more in proptest::collection::vec(any::<u8>(), 0..4)
    ) {
        let mut document = Document::default();
        edited(&mut document, 1, NOTES);
        edited(&mut document, 2, r#"[{"op":"splice","path":"/title","index":1,"delete":1,"insert":"abc"}]"#);
        let change = document.changes_since(&[]).unwrap().pop().unwrap();
        for (kind, whole) in [(1, change), (0, document.save(None).unwrap())] {
            let mut body = chunk_body(&whole);
            let at = at % body.len();
            body[at] = byte;
            body.splice(at..at, more.iter().copied());
            if cut < body.len() / 4 {
                body.truncate(body.len() - cut);
            }
            let bytes = match resum {
                true => chunk_of(kind, &body),
                false => [&whole[..whole.len() - chunk_body(&whole).len()], &body].concat(),
            };
            if let Ok(changes) = changes_of_file(&bytes) {
                let mut made = Document::default();
                if made.apply(&changes).is_ok() && made.check_depth().is_ok() {
                    let _ = made.json(None);
                    let _ = made.save(None);
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
        let _ = Change::parse(&bytes);
        let _ = chunk::chunks(&chunk_of(bytes.first().copied().unwrap_or(0) % 4, &bytes));
    }
}

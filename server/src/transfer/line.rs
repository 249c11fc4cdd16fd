//! The lines of an export: a header, records, an end.
//!
//! A record stands on one line, or on several that follow one another, of which all but the first say that they continue it.
//! A line is refused if it has anything that this version does not know.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The version of the format.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// The format's version.
    pub(super) godwit_export: u32,
    pub(super) cluster: String,
    pub(super) node: String,
    pub(super) namespace: String,
    /// When the export began, by the clock of the machine that it ran on.
    pub(super) time: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) prefix: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) after: String,
}

/// A record, or a part of one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordLine {
    pub(super) key: String,
    /// Whether lines before this one hold other parts of the record.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) continues: bool,
    /// When the record expires; on each of its lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires: Option<String>,
    pub(super) fields: Vec<FieldLine>,
}

/// A field, or a part of a set, zset or unique. Which members there are depends on the type.
///
/// A plain struct, since a tagged enum of serde would not keep the text of numbers.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FieldLine {
    pub(super) field: String,
    pub(super) r#type: String,
    /// Of a register or counter.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Box<RawValue>>,
    /// Of a register: values beside the one that wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) siblings: Vec<Box<RawValue>>,
    /// Of a set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) members: Vec<String>,
    /// Of a zset: members and their scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) scores: Vec<(String, Box<RawValue>)>,
    /// Of a unique: registers and their ranks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ranks: Vec<(u16, u8)>,
    /// Of a document: Automerge changes in base64, each after those that it builds on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) changes: Vec<String>,
    /// Whether another type of this name stands before it when the name is read.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) shadowed: bool,
}

/// The last line. A file without it broke off.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) end: Totals,
}

/// What is in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Totals {
    pub(super) records: u64,
    /// Lines between the header and the end.
    pub(super) lines: u64,
}

/// Any line.
#[derive(Debug)]
pub(super) enum Line {
    Header,
    Record(RecordLine),
    End(Totals),
}

impl Line {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // Nearly all lines are records, and what one is if it is none is told in the words for a record.
        let refused = match serde_json::from_str::<RecordLine>(text) {
            Ok(record) => return Ok(Self::Record(record)),
            Err(error) => format!("not a record of an export: {error}"),
        };
        if let Ok(End { end }) = serde_json::from_str(text) {
            return Ok(Self::End(end));
        }
        match serde_json::from_str::<Header>(text) {
            Ok(header) if header.godwit_export == FORMAT => Ok(Self::Header),
            Ok(header) => Err(format!(
                "the export has format {}, and this version of godwit reads format {FORMAT}: use the version that wrote it",
                header.godwit_export
            )),
            Err(_) => Err(refused),
        }
    }
}

/// A member that is there, also if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_byte_by_byte() {
        for value in ["null", "123456789012345678901234567890.50e+7", r#"{"b":1,"a":"\u00e9"}"#] {
            let text = format!(
                r#"{{"key":"k","fields":[{{"field":"f","type":"register","value":{value},"siblings":[{value}]}}]}}"#
            );
            let Ok(Line::Record(line)) = Line::parse(&text) else { panic!("{text}") };
            assert_eq!(line.fields[0].value.as_ref().unwrap().get(), value);
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
        }
    }

    #[test]
    fn lines_are_told_apart_and_the_unknown_is_refused() {
        let header = r#"{"godwit_export":1,"cluster":"c","node":"n","namespace":"ns","time":"t"}"#;
        assert!(matches!(Line::parse(header), Ok(Line::Header)));
        let totals = Totals { records: 1, lines: 2 };
        let end = serde_json::to_string(&End { end: totals }).unwrap();
        assert!(matches!(Line::parse(&end), Ok(Line::End(found)) if found == totals));
        let cases = [
            ("", "EOF"),
            ("[]", "not a record"),
            (r#"{"key":"k"}"#, "missing field `fields`"),
            (r#"{"key":"k","fields":[],"owner":1}"#, "unknown field `owner`"),
            (r#"{"key":"k","fields":[{"field":"f","type":"zset","places":{}}]}"#, "unknown field `places`"),
            (&header.replace(":1,", ":2,"), "format 2"),
        ];
        for (text, says) in cases {
            let told = Line::parse(text).unwrap_err();
            assert!(told.contains(says), "{text}: {told}");
        }
    }
}

//! JSON as a register holds it: checked, compact, otherwise as sent.
//!
//! Numbers and strings keep their text (so integers of any size and every escape come back as they came),
//! objects keep the order of their keys. Refused: duplicate keys, strings that are no Unicode text (lone
//! surrogates), nesting beyond the limit, anything that RFC 8259 does not allow. White space between
//! tokens is dropped, so that equal values written differently are still equal bytes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The deepest nesting of arrays and objects that is accepted.
pub const MAX_DEPTH: usize = 64;

/// Why JSON was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or an object with a key twice.
    #[error("not valid JSON: {0}")]
    Invalid(String),
    /// Nested too deep.
    #[error("JSON is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// One JSON value in its compact form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json(String);

impl Json {
    /// Checks and compacts a JSON text.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let raw: &RawValue = serde_json::from_str(text).map_err(invalid)?;
        let mut compact = String::with_capacity(text.len());
        write_compact(raw.get(), 0, &mut compact)?;
        Ok(Self(compact))
    }

    /// The compact text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn write_compact(text: &str, depth: usize, out: &mut String) -> Result<(), JsonError> {
    let nested = matches!(text.as_bytes().first(), Some(b'{' | b'['));
    if nested && depth == MAX_DEPTH {
        return Err(JsonError::TooDeep);
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let entries: Entries = serde_json::from_str(text).map_err(invalid)?;
            out.push('{');
            for (i, (key, value)) in entries.0.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(key.get());
                out.push(':');
                write_compact(value.get(), depth + 1, out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(invalid)?;
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_compact(item.get(), depth + 1, out)?;
            }
            out.push(']');
        }
        Some(b'"') => {
            // Raw text is not checked for lone surrogates; a string is.
            string(text)?;
            out.push_str(text);
        }
        _ => out.push_str(text),
    }
    Ok(())
}

/// An object's entries in their order, keys as raw text, refused if a key comes twice.
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                let mut keys = BTreeSet::new();
                while let Some((key, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
                    let name = string(key.get()).map_err(A::Error::custom)?;
                    if !keys.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the key {name:?} stands twice in one object")));
                    }
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

fn string(text: &str) -> Result<Cow<'_, str>, JsonError> {
    serde_json::from_str::<String>(text).map(Cow::Owned).map_err(invalid)
}

fn invalid(error: serde_json::Error) -> JsonError {
    JsonError::Invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_comes_back_as_sent() {
        for (sent, kept) in [
            (" 1 ", "1"),
            ("123456789012345678901234567890.10e+5", "123456789012345678901234567890.10e+5"),
            ("{ \"b\" : [ 1 , \"a\\u00e9\" ] , \"a\" : { } }", "{\"b\":[1,\"a\\u00e9\"],\"a\":{}}"),
            ("null", "null"),
            ("[ ]", "[]"),
        ] {
            assert_eq!(Json::parse(sent).map(|json| json.0), Ok(kept.to_string()));
        }
    }

    #[test]
    fn the_wrong_is_refused() {
        for bad in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}",
            "\"\\ud800\"",
            "01",
            "1 2",
            "NaN",
        ] {
            assert!(matches!(Json::parse(bad), Err(JsonError::Invalid(_))), "{bad}");
        }
        assert!(Json::parse(&format!("{}{}", "[".repeat(64), "]".repeat(64))).is_ok());
        assert_eq!(Json::parse(&format!("{}{}", "[".repeat(65), "]".repeat(65))), Err(JsonError::TooDeep));
        assert!(Json::parse(&"[".repeat(1_000_000)).is_err());
    }

    proptest! {
        #[test]
        fn compacting_twice_changes_nothing_more(text in "[\\[\\]{}:,\" 0-9a-e\\\\.-]{0,40}") {
            if let Ok(json) = Json::parse(&text) {
                prop_assert_eq!(Json::parse(json.as_str()), Ok(json.clone()));
            }
        }
    }
}

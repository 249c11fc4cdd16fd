//! The example file says everything and says it right; what cannot work is refused with a name and a cure.

use super::*;
use serde_json::Value;

const EXAMPLE: &str = include_str!("../../godwit.example.toml");

/// The example with its commented settings in force.
fn uncommented() -> String {
    let is_setting = |line: &str| {
        line.strip_prefix("# ")
            .and_then(|rest| rest.split_once(" = "))
            .is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let lines = EXAMPLE.lines().map(|line| if is_setting(line) { &line[2..] } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            entries.iter().for_each(|(name, value)| paths(value, &format!("{prefix}.{name}"), found));
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{prefix}[]"), found)),
        _ => {
            found.insert(prefix.to_string());
        }
    }
}

#[test]
fn the_example_shows_every_setting_and_its_default() {
    let as_is: Config = toml::from_str(EXAMPLE).unwrap();
    as_is.validate().unwrap();
    let written_out: Config = toml::from_str(&uncommented()).unwrap();
    let (as_is, written_out) =
        (serde_json::to_value(as_is).unwrap(), serde_json::to_value(written_out).unwrap());
    assert_eq!(as_is, written_out, "a commented setting does not show its default");

    let table: toml::Table = toml::from_str(&uncommented()).unwrap();
    let (mut shown, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&serde_json::to_value(table).unwrap(), "", &mut shown);
    paths(&as_is, "", &mut known);
    assert_eq!(shown, known);
}

fn refused(changes: &[(&str, &str)]) -> String {
    let mut text = EXAMPLE.to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let error = match toml::from_str::<Config>(&text) {
        Ok(config) => config.validate().unwrap_err(),
        Err(source) => ConfigError::Parse { path: "x.toml".into(), source: Box::new(source) },
    };
    error.to_string()
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("name = \"eu-1\"", "name = \"EU\"")], "node.name"),
        (&[("name = \"eu-1\"", "name = \"eu-\"")], "node.name"),
        (&[("region = \"eu\"", "region = \"\"")], "node.region"),
        (&[("cluster = \"example\"", "cluster = \"a b\"")], "node.cluster"),
        (&[("# partitions = 64", "partitions = 0")], "node.partitions"),
        (&[("# partitions = 64", "partitions = 5000")], "node.partitions"),
        (&[("# partitions = 64", "partition = 64")], "unknown field `partition`"),
        (&[("[clock]", "[clocks]")], "unknown field `clocks`"),
        (&[("# listen = \"127.0.0.1:7400\"", "listen = \"localhost\"")], "listen"),
        (&[("# value_bytes = 1048576", "value_bytes = 0")], "limits.value_bytes"),
        (&[("# value_bytes = 1048576", "value_bytes = 99999999")], "limits.value_bytes"),
        (&[("# request_bytes = 134217728", "request_bytes = 1")], "limits.request_bytes"),
        (&[("# answer_bytes = 16777216", "answer_bytes = 1")], "limits.answer_bytes"),
        (&[("# answers_bytes = 134217728", "answers_bytes = 1")], "limits.answers_bytes"),
        (&[("# cache_bytes = 268435456", "cache_bytes = 10")], "storage.cache_bytes"),
        (&[("# log_bytes = 1073741824", "log_bytes = 1000")], "retention.log_bytes"),
        (&[("# log_age_ms = 604800000", "log_age_ms = 999")], "retention.log_age_ms"),
        (&[("# bytes_per_s = 67108864", "bytes_per_s = 1000")], "repair.bytes_per_s"),
        (&[("# scrub_every_ms = 86400000", "scrub_every_ms = 999")], "repair.scrub_every_ms"),
        (&[("# durability = \"fsync\"", "durability = \"none\"")], "durability"),
        (&[("# filter = \"info\"", "filter = \"a=b=c\"")], "log.filter"),
        (&[("# format = \"text\"", "format = \"xml\"")], "format"),
        (&[("name = \"ap-1\"", "name = \"eu-1\"")], "this node itself"),
        (&[("name = \"ap-1\"", "name = \"us-1\"")], "twice"),
        (&[("name = \"ap-1\"", "name = \"zz-1\"")], "replication.peer[1].addresses"),
        (&[("10.20.0.1:7401", "10.20.0.1")], "replication.peer[0].addresses[0].address"),
        (&[("\"dedicated\" }", "\"leased\" }")], "leased"),
        (&[("key = \"eu-1.key\"", "")], "missing field `key`"),
    ];
    for (changes, named) in cases {
        let error = refused(changes);
        assert!(error.contains(named), "{changes:?}: {error}");
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let mut config: Config = toml::from_str(EXAMPLE).unwrap();
    config.resolve(Path::new("/etc/godwit"));
    assert_eq!(config.node.data_dir, Path::new("/etc/godwit/data"));
    assert_eq!(config.node.secret_file.as_deref(), Some(Path::new("/etc/godwit/cluster.secret")));
    assert_eq!(config.replication.unwrap().key, Path::new("/etc/godwit/eu-1.key"));
}

#[test]
fn a_secret_is_read_whole_or_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut config: Config = toml::from_str(EXAMPLE).unwrap();
    config.resolve(dir.path());
    let with = |text: &str| {
        std::fs::write(dir.path().join("cluster.secret"), text).unwrap();
        config.token_key().map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(with(&format!("{}\n", "0f".repeat(32))), Ok(()));
    for bad in ["", "0f", &"0f".repeat(33), &"0g".repeat(32)] {
        let error = with(bad).unwrap_err();
        assert!(error.contains("node.secret_file") && error.contains("godwit ca init"), "{error}");
    }
    std::fs::remove_file(dir.path().join("cluster.secret")).unwrap();
    assert!(config.token_key().unwrap_err().to_string().contains("cluster.secret"));
}

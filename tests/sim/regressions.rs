//! Recorded runs that failed once, each with what it showed. They are events, not seeds: a change of the generator does not
//! change them.

use std::fs;
use std::path::Path;

use godwit_sim::trace::Watch;
use godwit_sim::{recording, run};

#[test]
fn runs_that_failed_once_hold() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sim/regressions");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("the directory of recorded runs")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no recorded runs in {}", directory.display());
    for file in files {
        let name = file.display();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let script = recording::read(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!script.note.is_empty(), "{name}: its note must say what it showed");
        let report = run::play(&script, Watch::default());
        if let Some(violation) = report.violation {
            panic!("{name}: {violation}\n  it showed once: {}", script.note);
        }
        assert!(report.frames > 0, "{name}: nothing is sent");
    }
}

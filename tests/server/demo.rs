//! The demo, as `make demo` runs it: it proves its own end, and its exit status says whether it held.

use std::process::Command;

#[test]
fn the_demo_holds() {
    let output = Command::new(env!("CARGO_BIN_EXE_godwit")).arg("demo").output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for line in [
        "ok  the directory equals the recorded one: 293 podcasts",
        "ok  every score equals ups - downs: 1000 posts, 13260 votes, none lost, none counted twice",
        "ok  the digests of all data are equal",
        "convergence after the cut",
        "during it, none failed",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}

#[test]
fn a_directory_with_something_in_it_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("mine"), "precious").expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["demo", "--dir"])
        .arg(dir.path())
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not empty"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 1);
}

//! What people do wrong: each mistake ends with exit code 2 and says what to change.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use tempfile::TempDir;
use tests::paths;
use tests::process::Program;
use tests::run::{Host, HostOptions};

/// Whoever is asked for the impossible says so at once.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A folder with `text/a.txt`, which is enough to train the small model of [`CONFIG`] on.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("text")).expect("a folder");
    let text = "some words to learn from, and some more\n".repeat(2_000);
    fs::write(folder.path().join("text/a.txt"), text).expect("a file");
    fs::write(folder.path().join("run.toml"), CONFIG).expect("a file");
    folder
}

const CONFIG: &str = "[run]\nname = \"one\"\n\n[model]\ncontext = 16\n";

/// Runs the host in `folder` and asserts that it refuses with every one of `words`.
fn check_refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    check_refused_by(Command::new(host()), folder, arguments, words);
}

fn host() -> PathBuf {
    paths::program("shoal-host").expect("the host is built")
}

/// The same for a host that `command` starts.
fn check_refused_by(mut command: Command, folder: &Path, arguments: &[&str], words: &[&str]) {
    command.current_dir(folder).args(arguments);
    let mut program = Program::start("shoal-host", &mut command).expect("it starts");
    let ended = program.wait_end(ANSWER_MAX).expect("it ends");
    let said = program.said();
    assert_eq!(ended.code(), Some(2), "{said}");
    for word in words {
        assert!(said.contains(word), "not a word of `{word}`: {said}");
    }
}

#[test]
fn an_empty_data_folder_is_refused() {
    let folder = folder();
    fs::create_dir(folder.path().join("empty")).expect("a folder");
    check_refused(
        folder.path(),
        &["--data", "empty", "--port", "0"],
        &["no text in empty", "--data"],
    );
}

#[test]
fn data_that_is_not_there_is_refused() {
    let folder = folder();
    check_refused(
        folder.path(),
        &["--data", "absent", "--port", "0"],
        &["cannot read absent", "--data"],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = folder();
    let secret = folder.path().join("text/secret.txt");
    fs::write(&secret, "not for everybody\n").expect("a file");
    fs::set_permissions(&secret, Permissions::from_mode(0o000)).expect("it is ours");
    let arguments = ["--data", "text", "--port", "0"];
    let words = ["cannot read text/secret.txt: Permission denied", "--data"];
    let mut command = Command::new(host());
    if geteuid().is_root() {
        // Root reads everything, unless it gives that up.
        command = Command::new("setpriv");
        let refusing = "--bounding-set=-dac_override,-dac_read_search";
        command
            .args([refusing, "--inh-caps=-all", "--"])
            .arg(host());
    }
    check_refused_by(command, folder.path(), &arguments, &words);
}

#[test]
fn a_file_whose_reading_fails_is_named() {
    let folder = folder();
    // A file whose first page is never there: reading fails as on a broken disk.
    let file = "/proc/self/mem";
    check_refused(
        folder.path(),
        &["--data", file, "--port", "0"],
        &["cannot read /proc/self/mem: Input/output error"],
    );
}

#[test]
fn data_smaller_than_a_batch_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("short.txt"), "x").expect("a file");
    let words = ["short.txt holds", "training.batch"];
    check_refused(
        folder.path(),
        &["--data", "short.txt", "--port", "0"],
        &words,
    );
}

#[test]
fn a_typo_in_the_configuration_is_named_with_the_nearest_right_key() {
    let folder = folder();
    fs::write(
        folder.path().join("typo.toml"),
        "[training]\nlearning_rat = 1.0\n",
    )
    .expect("a file");
    let words = [
        "typo.toml",
        "`learning_rat`",
        "did you mean `learning_rate`?",
    ];
    check_refused(
        folder.path(),
        &["typo.toml", "--data", "text", "--port", "0"],
        &words,
    );
}

#[test]
fn a_port_in_use_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    check_refused(
        folder.path(),
        &["--data", "text", "--port", &port],
        &["cannot listen on", &port],
    );
}

#[test]
fn a_store_of_another_run_is_refused_and_left_as_it_was() {
    let folder = folder();
    let options = HostOptions {
        config: CONFIG.to_owned(),
        data: folder.path().join("text"),
        port: 0,
        arguments: vec![],
    };
    let mut host = Host::start(options).expect("the first run begins");
    host.program().kill().expect("it is killed");
    let store = host.folder().join("store");
    let store = store.to_str().expect("a path of text").to_owned();
    fs::write(
        folder.path().join("other.toml"),
        CONFIG.replace("one", "two"),
    )
    .expect("a file");
    let other = [
        "other.toml",
        "--data",
        "text",
        "--store",
        &store,
        "--port",
        "0",
    ];
    check_refused(
        folder.path(),
        &other,
        &["belongs to another run", "its name"],
    );
    fs::write(folder.path().join("text/b.txt"), "other text\n").expect("a file");
    let grown = [
        "run.toml", "--data", "text", "--store", &store, "--port", "0",
    ];
    check_refused(folder.path(), &grown, &["belongs to another run", "data"]);
    fs::remove_file(folder.path().join("text/b.txt")).expect("the file goes again");
    host.restart()
        .expect("the run's own host still starts over its store");
}

//! The house's invariants, held by reading the source.
//!
//! Each rule is a function from a file's path and text to what is wrong with it. Each test first
//! feeds its rule a broken sample, so that a rule that sees nothing cannot pass, then all files.
//! Comments, strings and test modules are no code to these rules. Begin with [`ARROWS`].

use std::collections::BTreeSet;
use std::process::Command;

use tests::paths::{self, File};
use tests::source::{code, code_with_tests, crate_paths, has_word};

/// Which modules of `shared` each of them may name: only such as stand above it, so that no circle
/// can be. What is not here is refused.
const ARROWS: [(&str, &str); 15] = [
    ("units", ""),
    ("faults", ""),
    ("random", ""),
    ("limits", "units"),
    ("config", "units limits"),
    ("transport", "units limits"),
    ("wire", "units random limits config transport"),
    ("compute", "units limits config transport wire"),
    ("schedule", "units random limits config wire"),
    ("derive", "units random limits config"),
    (
        "coordinator",
        "units random limits config transport wire schedule derive",
    ),
    (
        "peer",
        "units random limits config transport wire compute schedule derive",
    ),
    (
        "model",
        "units random limits config wire transport compute derive",
    ),
    (
        "driver",
        "units random limits config transport wire compute schedule derive peer",
    ),
    (
        "sim",
        "units random limits config transport wire compute schedule derive coordinator peer",
    ),
];

/// Most lines of one source file.
const LINES_MAX: usize = 600;
/// Most files of `shared` in which the target architecture makes a difference.
const ARCHITECTURE_FILES_MAX: usize = 2;

/// What is wrong with a file, a line each.
type Rule = fn(path: &str, text: &str) -> Vec<String>;

#[test]
fn arrows_between_modules_of_shared_point_one_way() {
    check(
        arrows,
        "shared/src/units.rs",
        "use crate::wire::frame::Frame;",
    );
    check(
        arrows,
        "shared/src/peer/mod.rs",
        "use crate::{units::Time, model::{stage, weights}};",
    );
    check(
        arrows,
        "shared/src/wire/mod.rs",
        "fn f() -> crate::peer::Peer { todo!() }",
    );
    check(
        arrows,
        "shared/src/peer/mod.rs",
        "use crate::sim::compute::FakeCompute;",
    );
    check(arrows, "shared/src/a_new_module.rs", "fn f() {}");
}

#[test]
fn decisions_never_see_burn() {
    let sample = "use burn::tensor::Tensor;";
    check(
        decides_without_burn,
        "shared/src/coordinator/mod.rs",
        sample,
    );
    check(decides_without_burn, "shared/src/peer/link.rs", sample);
    check(decides_without_burn, "shared/src/schedule/mod.rs", sample);
    check(decides_without_burn, "shared/src/driver.rs", sample);
}

#[test]
fn the_model_never_sees_peers_or_networks() {
    check(
        model_is_alone,
        "shared/src/model/stage.rs",
        "use crate::wire::signal::Up;",
    );
    check(
        model_is_alone,
        "shared/src/model/stage.rs",
        "use crate::wire::{self, signal};",
    );
    check(
        model_is_alone,
        "shared/src/model/stage.rs",
        "use crate::transport::Transport;",
    );
}

#[test]
fn shared_has_no_clock_no_global_generator_no_threads_and_no_hash_order() {
    for sample in [
        "let now = Instant::now();",
        "let now = std::time::SystemTime::now();",
        "let x = rand::rng().next_u32();",
        "std::thread::spawn(f);",
        "let seats: HashMap<u32, Seat>;",
        "use std::collections::HashSet;",
    ] {
        check(pure, "shared/src/peer/mod.rs", sample);
    }
}

#[test]
fn the_architecture_matters_in_at_most_two_files_of_shared() {
    let sample = |name: &str| {
        (
            format!("shared/src/{name}.rs"),
            "#[cfg(target_arch = \"wasm32\")] fn f() {}".to_owned(),
        )
    };
    let broken: Vec<File> = ["a", "b", "c"].map(sample).into();
    assert_eq!(
        architecture_files(&broken).len(),
        3,
        "the rule does not see its broken sample"
    );
    let files = files();
    let found = architecture_files(&files);
    assert!(found.len() <= ARCHITECTURE_FILES_MAX, "{found:?}");
}

#[test]
fn only_the_device_module_names_a_gpu_api() {
    check(
        one_gpu_module,
        "shared/src/model/stage.rs",
        "let device = Device::wgpu(kind);",
    );
    check(
        one_gpu_module,
        "client-native/src/main.rs",
        "use wgpu::Adapter;",
    );
}

#[test]
fn the_host_builds_without_burn() {
    let tree = "signaling v0.1.0\n├── shared v0.1.0\n│   └── burn v0.22.1\n";
    assert!(
        !burn_in(tree).is_empty(),
        "the rule does not see its broken sample"
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "-p", "signaling", "-e", "normal", "--locked"])
        .current_dir(paths::repository())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        tree.contains("axum"),
        "no tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(burn_in(&tree), Vec::<String>::new());
}

#[test]
fn no_source_file_is_too_long() {
    check(short, "shared/src/peer/mod.rs", &"\n".repeat(LINES_MAX + 1));
}

#[test]
fn nothing_names_a_folder_of_somebodys_machine() {
    for folder in machine_folders() {
        check(no_machine_paths, "README.md", &format!("cd {folder}shoal"));
    }
}

#[test]
fn no_test_is_left_out() {
    check(
        no_ignored_tests,
        "shared/src/units.rs",
        "#[test]\n#[ignore = \"slow\"]\nfn f() {}",
    );
}

#[test]
fn nothing_waits_by_sleeping_a_thread() {
    check(
        no_sleeping_threads,
        "tests/tests/run.rs",
        "std::thread::sleep(SECOND);",
    );
    check(
        no_sleeping_threads,
        "tests/tests/run.rs",
        "tokio::time::sleep(SECOND).await;",
    );
}

#[test]
fn every_limit_is_in_the_architecture_with_its_reason() {
    let table = "| `A_MAX` | 3 | As many as |";
    let limits =
        "/// Some.\npub const A_MAX: u32 = 3;\npub const B_MAX: Span = Span::from_secs(1);\n";
    assert_eq!(
        unlisted(limits, table),
        ["B_MAX"],
        "the rule does not see its broken sample"
    );
    assert_eq!(unlisted("", table), ["A_MAX"], "a limit that is gone");
    let files = files();
    let text = |name: &str| {
        let file = files.iter().find(|(path, _)| path == name);
        file.unwrap_or_else(|| panic!("no {name}")).1.as_str()
    };
    let (limits, page) = (text("shared/src/limits.rs"), text("ARCHITECTURE.md"));
    let (_, table) = page.split_once("\n## Limits\n").expect("a table");
    let (table, _) = table.split_once("\n## ").expect("what follows it");
    assert!(limits.contains("pub const TICK"), "no limits were seen");
    assert_eq!(unlisted(limits, table), Vec::<String>::new());
}

#[test]
fn the_table_of_arrows_has_no_circle() {
    for (row, (own, allowed)) in ARROWS.iter().enumerate() {
        for name in allowed.split_whitespace() {
            assert!(
                ARROWS[..row].iter().any(|(above, _)| *above == name),
                "{own} names {name}"
            );
        }
    }
}

fn arrows(path: &str, text: &str) -> Vec<String> {
    let Some(own) = module_of(path) else {
        return vec![];
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == own) else {
        return vec![format!(
            "the module {own} has no line in the table of arrows"
        )];
    };
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    let named = crate_paths(&code(text));
    let modules = named
        .iter()
        .map(|path| path.split("::").next().unwrap_or(path));
    modules
        // Lower case: a module, not an item of the root.
        .filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter(|name| *name != own && !allowed.split(' ').any(|one| one == *name))
        // A test may use what the simulation computes with.
        .filter(|name| !(is_test && *name == "sim"))
        .map(|name| format!("{own} may not name {name}"))
        .collect()
}

fn decides_without_burn(path: &str, text: &str) -> Vec<String> {
    let decides = ["coordinator", "peer", "schedule", "driver"];
    let own = module_of(path).filter(|own| decides.contains(own));
    if own.is_some() && has_word(&code(text), "burn") {
        vec!["names burn".into()]
    } else {
        vec![]
    }
}

fn model_is_alone(path: &str, text: &str) -> Vec<String> {
    if module_of(path) != Some("model") {
        return vec![];
    }
    let foreign = |path: &String| {
        path.starts_with("wire::signal")
            || path.starts_with("peer")
            || path == "transport::Transport"
    };
    crate_paths(&code(text))
        .into_iter()
        .filter(foreign)
        .collect()
}

fn pure(path: &str, text: &str) -> Vec<String> {
    if module_of(path).is_none_or(|own| own == "model") {
        return vec![];
    }
    let code = code(text);
    // A test of a promised bound looks at a clock.
    let is_test = path.contains("/tests/");
    let words = [
        "Instant",
        "SystemTime",
        "thread",
        "HashMap",
        "HashSet",
        "thread_rng",
    ];
    let mut found: Vec<String> = words
        .into_iter()
        .filter(|word| has_word(&code, word) && !(is_test && *word == "Instant"))
        .map(str::to_owned)
        .collect();
    if code.contains("rand::rng") {
        found.push("rand::rng".into());
    }
    found
}

fn architecture_files(files: &[File]) -> Vec<&str> {
    let matters = |(path, text): &&File| {
        path.starts_with("shared/src/") && has_word(&code(text), "target_arch")
    };
    files
        .iter()
        .filter(matters)
        .map(|(path, _)| path.as_str())
        .collect()
}

fn one_gpu_module(path: &str, text: &str) -> Vec<String> {
    let exempt = path.starts_with("shared/src/model/device") || !path.contains("/src/");
    let names = !exempt && path.ends_with(".rs") && has_word(&code(text), "wgpu");
    if names {
        vec!["names wgpu".into()]
    } else {
        vec![]
    }
}

fn burn_in(tree: &str) -> Vec<String> {
    let named = |line: &&str| {
        line.split_whitespace()
            .any(|word| word == "burn" || word.starts_with("burn-"))
    };
    tree.lines().filter(named).map(str::to_owned).collect()
}

fn short(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if path.ends_with(".rs") && lines > LINES_MAX {
        vec![format!("{lines} lines")]
    } else {
        vec![]
    }
}

fn no_machine_paths(_path: &str, text: &str) -> Vec<String> {
    let names = |line: &&str| {
        machine_folders()
            .iter()
            .any(|folder| line.contains(folder.as_str()))
    };
    text.lines().filter(names).map(str::to_owned).collect()
}

/// Names that stand in only one of them: the constants of `limits` and the first column of the table.
fn unlisted(limits: &str, table: &str) -> Vec<String> {
    let named = |text: &str, begin: &str, end: char| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(begin));
        lines
            .filter_map(|line| Some(line.split_once(end)?.0.to_owned()))
            .collect()
    };
    let constants = named(limits, "pub const ", ':');
    let listed = named(table, "| `", '`');
    constants.symmetric_difference(&listed).cloned().collect()
}

/// Beginnings of paths that exist on one machine only. In pieces, so that this file has none.
fn machine_folders() -> [String; 5] {
    [
        ("/ho", "me/"),
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/Us", "ers/"),
        ("C:\\Us", "ers\\"),
    ]
    .map(|(begin, end)| format!("{begin}{end}"))
}

fn no_ignored_tests(path: &str, text: &str) -> Vec<String> {
    let left_out = path.ends_with(".rs") && code(text).contains("#[ignore");
    if left_out {
        vec!["leaves a test out".into()]
    } else {
        vec![]
    }
}

fn no_sleeping_threads(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".rs") {
        return vec![];
    }
    let code = code_with_tests(text);
    let in_tests = path.starts_with("tests/") && code.contains("time::sleep");
    if code.contains("thread::sleep") || in_tests {
        vec!["sleeps".into()]
    } else {
        vec![]
    }
}

/// Asserts that `rule` refuses the sample and accepts every file of the repository.
fn check(rule: Rule, broken_path: &str, broken_text: &str) {
    let refused = rule(broken_path, broken_text);
    assert!(
        !refused.is_empty(),
        "the rule does not see its broken sample: {broken_text}"
    );
    let found: Vec<String> = files()
        .iter()
        .flat_map(|(path, text)| {
            rule(path, text)
                .into_iter()
                .map(move |what| format!("{path}: {what}"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// All files that people write here.
fn files() -> Vec<File> {
    let found = paths::sources();
    assert!(
        found.iter().any(|(path, _)| path == "shared/src/lib.rs"),
        "the walk saw no source"
    );
    found
}

/// The top-level module of `shared` that a file belongs to.
fn module_of(path: &str) -> Option<&str> {
    let inner = path.strip_prefix("shared/src/")?;
    let name = inner.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    (name != "lib" && !inner.ends_with("/tests.rs")).then_some(name)
}

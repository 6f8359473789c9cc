//! The program as a person types it: what it prints, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use annals::testing::{TestDatabase, database};

const SAMPLE: &str = include_str!("../data/orders-sample.csv");

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}.csv", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(database: &TestDatabase, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
    command.args(arguments).env("DATABASE_URL", database.url()).output().unwrap()
}

/// The exit code and the last line on standard output.
fn answer(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stdout);
    (output.status.code(), text.lines().last().unwrap_or_default().to_owned())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_import_and_its_report_agree() {
    let database = database().await;
    let file = File::new("sample", SAMPLE.as_bytes());

    let (code, json) = answer(&run(&database, &["import", file.path(), "--json"]));
    let counts = "\"orders_accepted\":1000,\"orders_already_there\":0,\"orders_rejected\":0,\"lines_accepted\":10388,\
                  \"lines_dropped\":61,\"amount_cents\":3078529,\"seconds\":";
    assert_eq!(code, Some(0));
    assert!(json.starts_with(&format!("{{{counts}")), "{json}");

    let (code, json) = answer(&run(&database, &["report", "--json"]));
    let counts = "{\"orders\":1000,\"lines\":10388,\"amount_cents\":3078529,\"customers\":711,\"position\":";
    assert_eq!(code, Some(0));
    assert!(json.starts_with(counts), "{json}");

    let again = run(&database, &["import", file.path()]);
    assert_eq!(answer(&again).0, Some(0));
    assert!(String::from_utf8_lossy(&again.stdout).contains("1,000 orders were there already"));
}

#[tokio::test]
async fn rejections_are_told_and_answered_with_3() {
    let database = database().await;
    let text: Vec<String> = SAMPLE.lines().take(60).map(|line| line.replace(",150,29", ",150,-29")).collect();
    let (file, rejections) = (File::new("rejected", text.join("\n").as_bytes()), File::new("rejections", b""));
    std::fs::remove_file(&rejections.0).unwrap();

    let output = run(&database, &["import", file.path(), "--rejections", rejections.path()]);

    assert_eq!(answer(&output).0, Some(3));
    let expected = "line 5: order 31198705046: discount_cents: \"-29\" is negative";
    assert!(errors(&output).contains(expected), "{}", errors(&output));
    assert!(std::fs::read_to_string(&rejections.0).unwrap().contains(expected));
}

#[tokio::test]
async fn a_file_that_is_there_is_never_written_over_with_rejections() {
    let database = database().await;
    let file = File::new("input", SAMPLE.as_bytes());

    let output = run(&database, &["import", file.path(), "--rejections", file.path()]);

    assert_eq!(answer(&output).0, Some(1));
    assert!(errors(&output).contains("cannot write the rejections to"), "{}", errors(&output));
    assert_eq!(std::fs::read_to_string(&file.0).unwrap(), SAMPLE);
}

#[tokio::test]
async fn a_file_that_ends_early_is_answered_with_3() {
    let database = database().await;
    let file = File::new("cut", &SAMPLE.as_bytes()[..5_000]);

    let output = run(&database, &["import", file.path()]);

    assert_eq!(answer(&output).0, Some(3));
    assert!(errors(&output).contains("the last good line is 57"), "{}", errors(&output));
}

#[tokio::test]
async fn a_file_without_a_column_is_refused() {
    let database = database().await;
    let file = File::new("header", SAMPLE.replacen("sku", "article", 1).as_bytes());

    let output = run(&database, &["import", file.path()]);

    assert_eq!(answer(&output).0, Some(1));
    assert!(errors(&output).contains("the header has no column sku"), "{}", errors(&output));
}

#[tokio::test]
async fn the_tour_can_be_taken_twice() {
    let database = database().await;

    for _ in 0..2 {
        let output = run(&database, &[]);

        assert_eq!(answer(&output).0, Some(0), "{}", errors(&output));
        let text = String::from_utf8_lossy(&output.stdout);
        for part in ["refused: the order is not confirmed yet", "nothing to do", "OrderCancelled", "What to type next"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}

/// The sample eight times, each time with other order ids.
fn eightfold() -> File {
    let mut lines: Vec<String> = SAMPLE.lines().take(1).map(str::to_owned).collect();
    for copy in 1..=8 {
        lines.extend(SAMPLE.lines().skip(1).map(|line| format!("{copy}{line}")));
    }
    File::new("eightfold", lines.join("\n").as_bytes())
}

/// Starts an import and, once some orders are stored, sends it `signal`. Returns its exit code, and what it printed last.
async fn interrupt(database: &TestDatabase, file: &File, signal: &str) -> (Option<i32>, String) {
    let import = Command::new(env!("CARGO_BIN_EXE_example-orders"))
        .args(["import", file.path(), "--json"])
        .env("DATABASE_URL", database.url())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pool = database.pool().await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let stored = "select count(*) from annals.events";
        if sqlx::query_scalar::<_, i64>(stored).fetch_one(&pool).await.is_ok_and(|stored| stored >= 500) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the import stores nothing");
        tokio::task::yield_now().await;
    }
    Command::new("kill").args([signal, &import.id().to_string()]).status().unwrap();
    answer(&import.wait_with_output().unwrap())
}

async fn completes(database: &TestDatabase, file: &File) {
    let (code, json) = answer(&run(database, &["import", file.path(), "--json"]));
    assert_eq!(code, Some(0), "{json}");
    let field = |name: &str| {
        let rest = json.split_once(&format!("\"{name}\":")).unwrap().1;
        rest.split([',', '}']).next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(field("orders_accepted") + field("orders_already_there"), 8_000, "{json}");
    assert!(field("orders_already_there") >= 500, "{json}");

    let (_, json) = answer(&run(database, &["report", "--json"]));
    let counts = "{\"orders\":8000,\"lines\":83104,\"amount_cents\":24628232,\"customers\":711,\"position\":";
    assert!(json.starts_with(counts), "{json}");
}

#[tokio::test]
async fn an_import_that_was_killed_is_completed_by_the_next() {
    let (database, file) = (database().await, eightfold());

    let (code, _) = interrupt(&database, &file, "-KILL").await;

    assert_eq!(code, None);
    completes(&database, &file).await;
}

#[tokio::test]
async fn an_import_that_is_told_to_stop_drains_and_is_completed_by_the_next() {
    let (database, file) = (database().await, eightfold());

    let (code, json) = interrupt(&database, &file, "-TERM").await;

    assert_eq!(code, Some(0));
    assert!(json.starts_with("{\"orders_accepted\":"), "{json}");
    completes(&database, &file).await;
}

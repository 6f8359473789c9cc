//! The program as a person types it: what it prints, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use annals::testing::{TestDatabase, database};

const SAMPLE: &str = include_str!("../data/orders-sample.csv");

/// A path in the system's temp folder that no other test has.
fn temporary(name: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("{}-{next}-{name}", std::process::id()))
}

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &[u8]) -> Self {
        let path = temporary(&format!("{name}.csv"));
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

/// Runs it in a folder of its own, which goes with it.
fn run(database: &TestDatabase, arguments: &[&str]) -> Output {
    let folder = temporary("work");
    std::fs::create_dir(&folder).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
    let output = command.args(arguments).env("DATABASE_URL", database.url()).current_dir(&folder).output().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    output
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
    assert!(
        errors(&output).contains("is there already: delete it, or name another file for the rejections"),
        "{}",
        errors(&output)
    );
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
    let expected = format!("cannot import {}: the header has no column sku; it has order_id,", file.path());
    assert!(errors(&output).contains(&expected), "{}", errors(&output));

    let file = File::new("semicolons", SAMPLE.replace(',', ";").as_bytes());
    let output = run(&database, &["import", file.path()]);
    assert_eq!(answer(&output).0, Some(1));
    assert!(errors(&output).contains("it holds semicolons, but fields"), "{}", errors(&output));
}

#[tokio::test]
async fn the_tour_can_be_taken_twice() {
    let database = database().await;

    for _ in 0..2 {
        let output = run(&database, &[]);

        assert_eq!(answer(&output).0, Some(0), "{}", errors(&output));
        let text = String::from_utf8_lossy(&output.stdout);
        let next = "cargo run -p example-orders -- report   ";
        let (refused, declined) = ("refused: the order is not confirmed yet", "the order is cancelled: pay: declined");
        let (killed, found) = ("completed; charged once, $5.98; it is on its way", "the process that ran it has ended");
        for part in [refused, "nothing to do", "OrderCancelled", declined, killed, found, next] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}

#[tokio::test]
async fn what_to_type_next_after_a_tour_names_the_folder_that_was_named() {
    let database = database().await;

    let output = run(&database, &["--data-dir", "my folder"]);

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("cargo run -p example-orders -- --data-dir 'my folder' report   "), "{text}");
}

/// The sample eight times, each time with other order ids.
fn eightfold() -> File {
    let mut lines: Vec<String> = SAMPLE.lines().take(1).map(str::to_owned).collect();
    for copy in 1..=8 {
        lines.extend(SAMPLE.lines().skip(1).map(|line| format!("{copy}{line}")));
    }
    File::new("eightfold", lines.join("\n").as_bytes())
}

/// Starts an import into the database at `url`.
fn start_import(url: &str, file: &File) -> Child {
    let mut import = Command::new(env!("CARGO_BIN_EXE_example-orders"));
    import.args(["import", file.path(), "--json"]).env("DATABASE_URL", url);
    import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until so many orders are stored.
async fn wait_for_orders(pool: &sqlx::PgPool, orders: i64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stored = "select count(*) from annals.events";
        if sqlx::query_scalar::<_, i64>(stored).fetch_one(pool).await.is_ok_and(|stored| stored >= orders) {
            return;
        }
        assert!(Instant::now() < deadline, "the import stores nothing");
        tokio::task::yield_now().await;
    }
}

/// Starts an import and, once some orders are stored, sends it `signal`. Returns its exit code, and what it printed last.
async fn interrupt(database: &TestDatabase, file: &File, name: &str) -> (Option<i32>, String) {
    let import = start_import(database.url(), file);
    wait_for_orders(&database.pool().await, 500).await;
    signal(import.id(), name);
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

/// A folder in the system's temp folder, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = temporary(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not in a minute: {what}");
        std::thread::yield_now();
    }
}

/// Starts the program on a machine without Postgres, whose npm does not end, and waits for that npm.
fn fetching(folder: &Folder) -> (Child, u32) {
    let (npm_file, pid_file) = (folder.0.join("npm"), folder.0.join("npm.pid"));
    std::fs::write(
        &npm_file,
        format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}\nwhile :; do sleep 1; done\n", pid_file.display()),
    )
    .unwrap();
    std::fs::set_permissions(&npm_file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_example-orders"))
        .args(["report", "--data-dir"])
        .arg(folder.0.join("data"))
        .env_remove("DATABASE_URL")
        .env("PG_BIN", "/nowhere")
        .env("PATH", format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("npm runs", || pid_file.exists());
    (program, std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap())
}

fn is_running(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

#[test]
fn a_start_that_is_told_to_stop_ends_in_order_and_leaves_no_process() {
    let folder = Folder::new("stopped-start");
    let (program, npm) = fetching(&folder);

    signal(program.id(), "-TERM");
    let output = program.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(errors(&output).contains("stopped"), "{}", errors(&output));
    wait_until("npm is gone", || !is_running(npm));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_says_so() {
    let (server, file) = (annals::testing::server().await, eightfold());
    let mut program = start_import(server.url(), &file);
    wait_for_orders(&server.pool().await, 500).await;
    let mut said = BufReader::new(program.stderr.take().unwrap()).lines();

    server.pause();
    signal(program.id(), "-TERM");
    let told = said.by_ref().any(|line| line.unwrap().contains("stopping in good order"));
    signal(program.id(), "-INT");
    let last = said.map(Result::unwrap).last().unwrap();
    let code = program.wait().unwrap().code();
    server.resume();

    assert!(told, "{last}");
    assert_eq!(code, Some(130));
    assert!(last.contains("ended at once"), "{last}");
}

/// The end of an import whose server goes: exit code, what it printed last, and all that it said on the way.
fn end_of(import: Child, said: impl Iterator<Item = std::io::Result<String>>) -> (Option<i32>, String, String) {
    let said: Vec<String> = said.map(Result::unwrap).collect();
    let (code, json) = answer(&import.wait_with_output().unwrap());
    (code, json, said.join("\n"))
}

#[tokio::test]
async fn an_import_goes_on_when_its_server_comes_back() {
    let (mut server, file) = (annals::testing::server().await, eightfold());
    let mut import = start_import(server.url(), &file);
    wait_for_orders(&server.pool().await, 500).await;
    let mut said = BufReader::new(import.stderr.take().unwrap()).lines();

    server.kill();
    let killed = Instant::now();
    let told = said.by_ref().any(|line| line.unwrap().contains("PostgreSQL cannot be reached, waiting for it"));
    println!("told after {:?}", killed.elapsed());
    server.start().await;

    let (code, json, said) = end_of(import, said);
    assert!(told, "{said}");
    assert!(said.contains("PostgreSQL answers again"), "{said}");
    assert_eq!(code, Some(0), "{said}");
    assert!(json.contains("\"orders_accepted\":8000,") && json.contains("\"lines_accepted\":83104,"), "{json}");
}

#[tokio::test]
async fn a_private_server_that_is_killed_under_an_import_is_started_again() {
    let (folder, file) = (Folder::new("killed"), eightfold());
    let data = folder.0.join("data");
    let program = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        program.args(arguments).arg("--json").arg("--data-dir").arg(&data).env_remove("DATABASE_URL");
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut import = program(&["import", file.path()]);
    let mut said = BufReader::new(import.stderr.take().unwrap()).lines();
    wait_until("the server is ready", || {
        std::fs::read_to_string(data.join("pg/postmaster.pid")).is_ok_and(|text| text.contains("ready"))
    });
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(data.join("pg.json")).unwrap()).unwrap();
    wait_for_orders(&sqlx::PgPool::connect(json["url"].as_str().unwrap()).await.unwrap(), 500).await;

    let pid_file = std::fs::read_to_string(data.join("pg/postmaster.pid")).unwrap();
    signal(pid_file.lines().next().unwrap().parse().unwrap(), "-KILL");
    let killed = Instant::now();
    let told = said.by_ref().any(|line| line.unwrap().contains("cannot be reached"));
    println!("told after {:?}", killed.elapsed());

    let (code, json, said) = end_of(import, said);
    assert!(told, "{said}");
    assert!(said.contains("the private PostgreSQL had ended and was started again"), "{said}");
    assert_eq!(code, Some(0), "{said}");
    assert!(json.contains("\"orders_accepted\":8000,") && json.contains("\"lines_accepted\":83104,"), "{json}");
    let (code, json) = answer(&program(&["report"]).wait_with_output().unwrap());
    assert_eq!(code, Some(0));
    assert!(json.starts_with("{\"orders\":8000,\"lines\":83104,\"amount_cents\":24628232,"), "{json}");
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    let (database, file) = (database().await, File::new("unread", SAMPLE.as_bytes()));

    for arguments in [&["import", file.path(), "--json"][..], &["report"], &["report", "--json"], &[]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        program.args(arguments).env("DATABASE_URL", database.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = program.spawn().unwrap();
        drop(program.stdout.take());

        let output = program.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", errors(&output));
        assert!(!["error", "panicked"].iter().any(|word| errors(&output).contains(word)), "{}", errors(&output));
    }
    let (_, json) = answer(&run(&database, &["report", "--json"]));
    assert!(json.starts_with("{\"orders\":1000,"), "{json}");
}

#[tokio::test]
async fn where_there_is_no_terminal_an_import_tells_its_progress_line_by_line() {
    let (database, file, pipe) = (database().await, eightfold(), temporary("pipe"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = File(pipe);
    let mut import = start_import(database.url(), &pipe);
    let mut said = BufReader::new(import.stderr.take().unwrap()).lines();
    let text = std::fs::read(&file.0).unwrap();
    let (first, rest) = text.split_at(text.len() / 2);

    // The import cannot end before its progress was seen.
    let mut input = std::fs::OpenOptions::new().write(true).open(&pipe.0).unwrap();
    input.write_all(first).unwrap();
    let line = said.by_ref().map(Result::unwrap).find(|line| line.ends_with(" a second"));
    input.write_all(rest).unwrap();
    drop(input);

    assert!(line.is_some_and(|line| line.contains(" order")));
    let (code, _, said) = end_of(import, said);
    assert_eq!(code, Some(0), "{said}");
}

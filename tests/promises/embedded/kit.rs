//! Databases and servers for tests leave nothing behind.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

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
    eventually("it is gone", || async { ask(kept.url(), &exists).await == "0" }).await;
    drop(pool);
}

/// The server drops nothing before whoever is logging in has answered it.
#[tokio::test]
async fn a_database_is_dropped_although_the_thread_that_drops_it_has_a_login_to_answer() {
    let (kept, dropped) = (testing::database().await, testing::database().await);
    let name = dropped.name().to_owned();
    let exists = format!("select count(*)::text from pg_database where datname = '{name}'");
    let address = kept.url().rsplit_once('@').unwrap().1.split('/').next().unwrap();
    let mut login = TcpStream::connect(address).await.unwrap();
    let words = b"user\0postgres\0database\0postgres\0\0";
    login.write_i32(8 + words.len() as i32).await.unwrap();
    login.write_i32(3 << 16).await.unwrap();
    login.write_all(words).await.unwrap();
    assert_eq!(login.read_u8().await.unwrap(), b'R', "it is asked for its password");

    let begun = Instant::now();
    drop(dropped);

    assert!(begun.elapsed() < LIMIT, "it would have waited for itself");
    drop(login);
    eventually("it is gone", || async { ask(kept.url(), &exists).await == "0" }).await;
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

//! What is killed or hangs, app or server, is no obstacle.

use super::*;

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
async fn a_start_that_nobody_waits_for_any_more_is_broken_off_and_leaves_nothing() {
    let folder = Folder::new();
    let making = tokio::spawn(embedded::start(options(&folder)));
    let entries = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    eventually("initdb is at work", async || entries().any(|path| path.join("PG_VERSION").exists())).await;
    making.abort();
    eventually("initdb's folder is gone", async || !entries().any(|path| path.join("PG_VERSION").exists())).await;

    let whole = embedded::start(options(&folder)).await.unwrap();
    assert_eq!(whole.how(), How::Created);
    let cluster = whole.cluster();
    whole.stop().await.unwrap();

    // A server that waits for its archive is neither ready nor gone.
    fs::write(cluster.join("recovery.signal"), "").unwrap();
    give_to_unprivileged(&cluster.join("recovery.signal"));
    let archive = ("restore_command".into(), "echo asked >&2; exec sleep 1000".into());
    let starting = tokio::spawn(embedded::start(Options { settings: vec![archive], ..options(&folder) }));
    let log = || fs::read_to_string(folder.path().join("pg.log")).unwrap();
    eventually("the server asks its archive", async || log().lines().any(|line| line == "asked")).await;
    let pid_file = fs::read_to_string(cluster.join("postmaster.pid")).unwrap();
    let pid = pid_file.lines().next().unwrap().parse().unwrap();
    assert!(is_running(pid));
    starting.abort();
    eventually("the server is gone", async || !is_running(pid)).await;

    fs::remove_file(cluster.join("recovery.signal")).unwrap();
    assert_eq!(embedded::start(options(&folder)).await.unwrap().how(), How::Started);
}

#[tokio::test]
async fn a_killed_server_is_started_again_on_its_port_for_an_app_that_asks() {
    let folder = Folder::new();
    let server = embedded::start(options(&folder)).await.unwrap();
    execute(server.url(), "create table kept as select 42 as answer").await;
    assert!(!server.revive().await.unwrap());
    let first = server.pid();
    signal("KILL", &first.to_string());
    eventually("the postmaster is gone", async || !is_running(first)).await;

    assert!(server.revive().await.unwrap());

    assert_ne!(server.pid(), first);
    assert_eq!(ask(server.url(), "select answer::text from kept").await, "42");
    assert_eq!(server.stop().await.unwrap(), Left::Stopped);
}

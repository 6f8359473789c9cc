//! A cluster starts by itself, and says why when it cannot.

use super::*;

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

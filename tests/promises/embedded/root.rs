//! Root and plain users, and folders that are closed.

use super::*;

/// The lines of the test below; an announcement is a plain function.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[tokio::test]
async fn below_a_folder_closed_to_the_servers_user_the_cluster_goes_elsewhere_and_is_found_again() {
    if !is_root() {
        eprintln!("SKIPPED: this is about root, and you are not");
        return;
    }
    let folder = Folder::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let announce = |line: &str| TOLD.lock().unwrap().push(line.to_owned());
    let below = Options { data_dir: folder.path().join("project/.data"), announce, ..options(&folder) };

    let first = embedded::start(below.clone()).await.unwrap();
    let cluster = first.cluster();
    let home = cluster.parent().unwrap();
    let removed = Folder(home.to_owned());
    execute(first.url(), "create table kept as select 42 as answer").await;
    first.stop().await.unwrap();
    let second = embedded::start(below.clone()).await.unwrap();

    assert!(!cluster.starts_with(folder.path()), "{}", cluster.display());
    assert_eq!((second.how(), second.cluster()), (How::Started, cluster.clone()));
    assert_eq!(ask(second.url(), "select answer::text from kept").await, "42");
    second.stop().await.unwrap();

    // Without the data folder its data are still there, and whoever starts is told so.
    fs::remove_dir_all(&below.data_dir).unwrap();
    let third = embedded::start(below).await.unwrap();
    assert_eq!((third.how(), third.cluster()), (How::Started, cluster.clone()));
    assert_eq!(ask(third.url(), "select answer::text from kept").await, "42");
    third.stop().await.unwrap();
    let told = TOLD.lock().unwrap().iter().filter(|line| line.ends_with(&format!("rm -rf {}", home.display()))).count();
    assert_eq!(told, 1);
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

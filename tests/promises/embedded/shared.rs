//! Apps of one folder share one server.

use super::*;

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

//! P3, P4: each partition has one owner at a time, and one that is late changes nothing.

use std::collections::BTreeSet;

use annals::{App, Config, Follow, FollowerState, testing::database};

use super::{assert_accounted, shop, status};
use crate::{
    app::place,
    kit::{LONG, eventually, open, open_with},
    shop::{Journal, Order, OrderCommand, Spend},
};

async fn named(url: &str, name: &str) -> App {
    shop(url, |config| config.application_name = name.into()).await
}

/// Who owns which follower.
async fn owners(app: &App) -> Vec<(String, Option<String>)> {
    let lag = app.store().followers().lag().await.unwrap();
    lag.into_iter().map(|lag| (lag.follower, lag.owner.map(|(name, _)| name))).collect()
}

async fn distinct_owners(app: &App) -> BTreeSet<Option<String>> {
    owners(app).await.into_iter().map(|(_, owner)| owner).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_the_followers_evenly_and_give_them_up_when_they_stop() {
    let database = database().await;
    let one = named(database.url(), "one").await;
    eventually("one has both", || async { distinct_owners(&one).await == [Some("one".into())].into() }).await;

    let two = named(database.url(), "two").await;
    let both = BTreeSet::from([Some("one".to_owned()), Some("two".to_owned())]);
    eventually("each has one", || async { distinct_owners(&one).await == both }).await;
    let placed = two.execute::<Order>(1, place("ada", 1)).await.unwrap();
    for app in [&one, &two] {
        app.wait_for_all(placed.position, LONG).await.unwrap();
        assert_eq!(app.followers().iter().map(|status| status.here).sum::<usize>(), 1);
    }
    one.shutdown().await;
    eventually("two has both", || async { distinct_owners(&two).await == [Some("two".into())].into() }).await;
    let placed = two.execute::<Order>(2, place("ada", 1)).await.unwrap();
    two.wait_for_all(placed.position, LONG).await.unwrap();

    for name in ["spend", "journal"] {
        assert_eq!(assert_accounted(&two, name).await, (2, 2, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_run_some_followers_or_none_and_wait_for_all() {
    let database = database().await;
    let builder = |store: annals::Annals| store.app().aggregate::<Order>().view::<Spend>().projector(Journal);
    let web = builder(open(database.url()).await).follow(Follow::Nothing).start().await.unwrap();
    let placed = web.execute::<Order>(1, place("ada", 1)).await.unwrap();
    let waited = web.wait_for("spend", placed.position, std::time::Duration::from_millis(1_500)).await;
    assert!(waited.is_err(), "nobody runs it: {waited:?}");
    assert_eq!(status(&web, "spend").state, FollowerState::Starting);

    let worker = open_with(Config { application_name: "worker".into(), ..crate::kit::config(database.url()) }).await;
    let worker = builder(worker).follow(Follow::Only(vec!["spend".into()])).start().await.unwrap();
    web.wait_for("spend", placed.position, LONG).await.unwrap();
    assert_eq!(owners(&web).await, [("journal".into(), None), ("spend".into(), Some("worker".into()))]);
    assert_eq!(web.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 1, orders: 1 }));
    worker.shutdown().await;
    let unknown = builder(open(database.url()).await).follow(Follow::Only(vec!["spent".into()]));
    let (_, text) = crate::kit::start_error(unknown).await;
    assert!(text.contains("no read model \"spent\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_owner_had_begun_does_not_commit() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let first = app.execute::<Order>(1, place("ada", 1)).await.unwrap();
    app.wait_for_all(first.position, LONG).await.unwrap();

    // Somebody else takes it, as a process would whose clock says that this one is gone; and gives it back.
    for nth in 2..12 {
        let take = "update annals.checkpoints set owner = gen_random_uuid(), fence = fence + 1";
        sqlx::query(take).execute(app.store().pool()).await.unwrap();
        app.execute::<Order>(nth, place("ada", 1)).await.unwrap();
        app.execute::<Order>(nth, OrderCommand::Confirm).await.unwrap();
    }
    let last = app.execute::<Order>(12, place("ada", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();

    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 12, orders: 12 }));
    assert_eq!(assert_accounted(&app, "spend").await, (12, 12, 0, 0));
    assert_eq!(assert_accounted(&app, "journal").await, (22, 22, 0, 0));
}

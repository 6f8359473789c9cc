//! The checker is worth something: without the marker it finds lost events.

use std::sync::Arc;

use annals::{Annals, testing::database};
use sqlx::Connection;

use super::{
    LONG, connect, direct,
    draws::Load,
    insert, open, run,
    seen::{Seen, Verdict, stored},
};

/// One writer draws first and commits last, while another commits and a reader passes.
async fn overtake(store: &Annals) -> Verdict {
    let url = direct(store);
    let (mut slow, mut quick, mut seen) = (connect(url).await, connect(url).await, Seen::default());

    let mut transaction = slow.begin().await.unwrap();
    insert(&mut transaction, "order-slow", 0, 3).await;
    insert(&mut quick, "order-quick", 0, 2).await;
    seen.read_page(store).await;
    transaction.commit().await.unwrap();
    while seen.read_page(store).await > 0 {}

    seen.judge(&stored(store).await)
}

#[tokio::test]
async fn a_writer_that_commits_late_is_seen_and_without_the_marker_it_would_be_lost() {
    let database = database().await;
    let store = open(&database).await;
    let with_marker = overtake(&store).await;

    let other = annals::testing::database().await;
    let sabotaged = open(&other).await;
    run(&mut connect(other.url()).await, "drop trigger mark_in_flight on annals.events").await;
    let without_marker = overtake(&sabotaged).await;

    assert_eq!(with_marker, Verdict::default());
    assert_eq!(without_marker.lost, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_load_finds_lost_events_when_the_marker_is_gone() {
    let database = database().await;
    let store = open(&database).await;
    run(&mut connect(database.url()).await, "drop trigger mark_in_flight on annals.events").await;

    let [by_pages, by_horizon] = Arc::new(Load::default()).run(&store, LONG).await;

    let stored = stored(&store).await;
    let lost = [by_pages, by_horizon].map(|seen| seen.judge(&stored).lost.len());
    println!("without the marker {lost:?} of {} events were lost", stored.len());
    assert!(lost.iter().sum::<usize>() > 0);
    store.close().await;
}

#[tokio::test]
async fn a_store_without_its_marker_is_refused_and_the_text_names_the_trigger() {
    let database = database().await;
    open(&database).await.close().await;
    run(&mut connect(database.url()).await, "alter table annals.events enable trigger mark_in_flight").await;

    let refused = Annals::connect(annals::Config::new(database.url())).await;

    let Err(annals::StoreError::Unfit(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("mark_in_flight") && text.contains("ENABLE ALWAYS"), "{text}");
}

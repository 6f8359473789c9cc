//! Many draws: the load under which a plain read of the sequence loses events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use annals::{Annals, testing::database};
use futures::future::{join, join_all};
use sqlx::Connection;

use super::{
    Dice, connect, direct, insert, load_time, markers, open, pause, run,
    seen::{Seen, Verdict, stored, streams_out_of_order, streams_with_holes},
    tell,
};

const WRITERS: usize = 28;
/// Writers wait for a reader that is this many positions behind: races happen at the log's end only.
const FAR: i64 = 1_000;

/// What the writers did, and how far the slowest reader is.
#[derive(Default)]
pub(super) struct Load {
    appends: AtomicU64,
    events: AtomicU64,
    /// Appends whose marker did not lie below all their positions.
    marked_too_high: AtomicU64,
    drawn: AtomicI64,
    read: [AtomicI64; 2],
    /// A reader has found a fault: no need to go on.
    failed: AtomicBool,
    ended: AtomicBool,
}

impl Load {
    fn behind(&self) -> i64 {
        let slowest = self.read.iter().map(|read| read.load(Ordering::Relaxed)).min().unwrap();
        self.drawn.load(Ordering::Relaxed) - slowest
    }

    /// Appends to streams of its own, and keeps each transaction open for a while.
    async fn write(&self, url: &str, nth: usize, end: Instant) {
        let (mut conn, mut dice) = (connect(url).await, Dice::new(nth));
        let (mut stream, mut version) = (0, 0);
        while Instant::now() < end && !self.failed.load(Ordering::Relaxed) {
            if self.behind() > FAR {
                pause(2).await;
                continue;
            }
            if version > 500 {
                (stream, version) = (stream + 1, 0);
            }
            let count = dice.between(1, 60) as i64;
            let name = format!("order-{nth}.{stream}");
            if dice.percent(10) {
                let mut transaction = conn.begin().await.unwrap();
                let (first, last) = insert(&mut transaction, &name, version, count).await;
                let below = markers(&mut transaction).await.iter().all(|marker| *marker < first);
                transaction.commit().await.unwrap();
                self.drawn.fetch_max(last, Ordering::Relaxed);
                self.marked_too_high.fetch_add(u64::from(!below), Ordering::Relaxed);
            } else {
                run(&mut conn, insert_and_hold(&name, version, count, dice.between(0, 15))).await;
            }
            version += count;
            self.appends.fetch_add(1, Ordering::Relaxed);
            self.events.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// Runs writers and two readers, one by the public page, one by the horizon.
    pub(super) async fn run(self: Arc<Self>, store: &Annals, time: Duration) -> [Seen; 2] {
        let (url, end) = (direct(store).to_owned(), Instant::now() + time);
        let writers: Vec<_> = (0..WRITERS)
            .map(|nth| {
                let (load, url) = (self.clone(), url.clone());
                tokio::spawn(async move { load.write(&url, nth, end).await })
            })
            .collect();
        let readers = [true, false].map(|by_pages| {
            let (load, store) = (self.clone(), store.clone());
            let progress = move |seen: &Seen| {
                load.read[usize::from(by_pages)].store(seen.last(), Ordering::Relaxed);
                load.failed.fetch_or(seen.is_faulty(), Ordering::Relaxed);
            };
            let load = self.clone();
            tokio::spawn(async move { Seen::default().follow(&store, by_pages, &load.ended, progress).await })
        });
        let wait_for_writers = async {
            join_all(writers).await.into_iter().for_each(|writer| writer.unwrap());
            self.ended.store(true, Ordering::SeqCst);
        };
        let ((), readers) = join(wait_for_writers, join_all(readers)).await;
        let mut readers = readers.into_iter().map(|reader| reader.unwrap());
        [readers.next().unwrap(), readers.next().unwrap()]
    }
}

/// One transaction in one message: the server itself keeps it open, so that the test's own pace limits nobody.
fn insert_and_hold(stream: &str, after: i64, count: i64, milliseconds: u64) -> String {
    format!(
        r#"insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
             select {after} + nth, gen_random_uuid(), gen_random_uuid(), '{stream}', 'Placed', '{{}}'
             from generate_series(1, {count}) nth;
           select pg_sleep({milliseconds} / 1000.0)"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_miss_nothing_while_28_writers_draw_positions_at_a_high_rate() {
    let database = database().await;
    let store = open(&database).await;
    let (load, time) = (Arc::new(Load::default()), load_time(Duration::from_secs(10)));

    let [by_pages, by_horizon] = load.clone().run(&store, time).await;

    let (appends, events) = (load.appends.load(Ordering::Relaxed), load.events.load(Ordering::Relaxed));
    let stored = stored(&store).await;
    tell(&format!(
        "high draw rate: {events} events in {appends} appends by {WRITERS} writers in {time:?}; readers saw {} and {}; \
         the safe position was behind the sequence in {} looks",
        by_pages.positions.len(),
        by_horizon.positions.len(),
        by_horizon.held,
    ));
    assert_eq!(stored.len() as u64, events, "every acknowledged event is stored");
    assert_eq!(by_pages.judge(&stored), Verdict::default());
    assert_eq!(by_horizon.judge(&stored), Verdict::default());
    assert_eq!(load.marked_too_high.load(Ordering::Relaxed), 0, "a marker lies below all its positions");
    assert!(by_horizon.held > 0, "the test never met a writer in flight");
    assert_eq!((streams_with_holes(&store).await, streams_out_of_order(&store).await), (vec![], vec![]));
    store.close().await;
}

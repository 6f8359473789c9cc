//! Many orders at once: what is counted, what wins, and how it ends.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use annals::StoreError;
use tokio::{sync::mpsc, task::yield_now};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    import::{
        in_flight::{Recorded, run},
        progress::Progress,
        source::Source,
        summary::{Ending, Summary},
    },
    order::Purchase,
};

/// Imports `text` with `record` in the place of the store.
async fn import(
    text: Vec<u8>,
    stop: &CancellationToken,
    record: impl AsyncFn(OrderId, Purchase) -> Result<Recorded, StoreError>,
) -> (Summary, Ending) {
    let (sender, entries) = mpsc::channel(2);
    let reader = std::thread::spawn(move || read(text).into_iter().all(|entry| sender.blocking_send(entry).is_ok()));
    let mut progress = Progress::new(&Source::of(b"").unwrap()).unwrap();
    let outcome = run(entries, record, stop, &mut progress).await;
    reader.join().unwrap();
    outcome.unwrap()
}

/// A store in memory.
#[derive(Default)]
struct Orders(RefCell<HashMap<i64, Purchase>>);

impl Orders {
    fn record(&self, id: OrderId, purchase: Purchase) -> Recorded {
        match self.0.borrow_mut().insert(id.0, purchase.clone()) {
            None => Recorded::Now,
            Some(there) if there == purchase => Recorded::Before,
            Some(_) => Recorded::Refused(Fault::new("order_id", "other contents")),
        }
    }
}

#[tokio::test]
async fn everything_is_counted() {
    let zero = String::from_utf8(row_with(7, "0")).unwrap();
    let text = file([&row(1)[..], &row(1), &zero, &row(6), &zero.replace('5', "6"), &row(1), &row(1), &row(2), "x\n"]);
    let orders = Orders::default();

    let (summary, ending) =
        import(text, &CancellationToken::new(), async |id, purchase| Ok(orders.record(id, purchase))).await;

    let expected = Summary {
        orders_accepted: 3,
        orders_already_there: 1,
        orders_rejected: 2,
        lines_accepted: 4,
        lines_dropped: 2,
        amount_cents: 4 * 598,
        seconds: summary.seconds,
    };
    assert_eq!(summary, expected);
    assert!(matches!(ending, Ending::Complete));
}

#[tokio::test]
async fn many_are_on_their_way_at_once_and_none_twice() {
    let text = file((0..2_000).flat_map(|id| [row(id % 10 + 1), row(id + 100)]));
    let (now, most, ids) = (Cell::new(0), Cell::new(0), RefCell::new(vec![]));

    let (summary, _) = import(text, &CancellationToken::new(), async |id, _| {
        assert!(!ids.borrow().contains(&id));
        ids.borrow_mut().push(id);
        now.set(now.get() + 1);
        most.set(most.get().max(now.get()));
        yield_now().await;
        now.set(now.get() - 1);
        ids.borrow_mut().retain(|other| *other != id);
        Ok(Recorded::Now)
    })
    .await;

    assert_eq!(summary.orders_accepted, 4_000);
    assert!((2..=256).contains(&most.get()), "{} at once", most.get());
}

#[tokio::test]
async fn of_two_orders_with_one_id_the_first_wins() {
    let second = String::from_utf8(row_with(8, "1")).unwrap();
    let (orders, first) = (Orders::default(), Cell::new(true));

    let (summary, _) = import(file([&row(5), &row(6), &second]), &CancellationToken::new(), async |id, purchase| {
        if first.replace(false) {
            for _ in 0..100 {
                yield_now().await;
            }
        }
        Ok(orders.record(id, purchase))
    })
    .await;

    assert_eq!((summary.orders_accepted, summary.orders_rejected, summary.amount_cents), (2, 1, 2 * 598));
}

#[tokio::test]
async fn a_stop_waits_for_what_is_on_its_way() {
    let (stop, begun, done) = (CancellationToken::new(), Cell::new(0), Cell::new(0));

    let (summary, ending) = import(file((1..10_000).map(row)), &stop, async |_, _| {
        begun.set(begun.get() + 1);
        if begun.get() == 500 {
            stop.cancel();
        }
        yield_now().await;
        done.set(done.get() + 1);
        Ok(Recorded::Now)
    })
    .await;

    assert_eq!(begun.get(), done.get());
    assert_eq!(summary.orders_accepted, done.get());
    assert!(done.get() < 9_999, "{} are done", done.get());
    assert!(matches!(ending, Ending::Stopped { line } if line >= 501));
}

#[tokio::test]
async fn a_store_that_fails_ends_the_import() {
    let count = Cell::new(0);

    let (summary, ending) = import(file((1..10_000).map(row)), &CancellationToken::new(), async |_, _| {
        count.set(count.get() + 1);
        if count.get() == 100 { Err(StoreError::Closed) } else { Ok(Recorded::Now) }
    })
    .await;

    assert!(matches!(ending, Ending::Failed { error: StoreError::Closed, .. }), "{ending:?}");
    assert_eq!(summary.orders_accepted, count.get() - 1);
    assert!(count.get() < 9_999);
}

//! Many orders on their way at once, and never two of the same id.

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use annals::StoreError;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    group::FileOrder,
    orders::Entry,
    progress::Progress,
    rejection::{Fault, Rejection},
    summary::{Ending, Summary},
};
use crate::order::{OrderId, Purchase};

/// Orders on their way, at most: in number, and in bytes of their text.
const MAX_ORDERS: usize = 256;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What became of an order on its way.
#[derive(Debug, PartialEq)]
pub(crate) enum Recorded {
    Now,
    Before,
    Refused(Fault),
}

/// Takes `entries` and has `record` store their orders, until there are no more or `stop` asks for an end. Orders on
/// their way are always waited for.
///
/// Orders of the same id are recorded one after the other, as they stand in the file: so the first one wins.
///
/// # Errors
/// The rejections cannot be written.
pub(crate) async fn run(
    mut entries: mpsc::Receiver<Entry>,
    record: impl AsyncFn(OrderId, Purchase) -> Result<Recorded, StoreError>,
    stop: &CancellationToken,
    progress: &mut Progress,
) -> io::Result<(Summary, Ending)> {
    let started = Instant::now();
    let (mut summary, mut ending, mut failure) = (Summary::default(), Ending::Complete, None);
    let (mut on_their_way, mut ids, mut bytes) = (FuturesUnordered::new(), HashSet::new(), 0);
    let (mut next, mut ended) = (None::<FileOrder>, false);
    let mut line = 1;
    let mut tick = interval(Duration::from_millis(100));

    loop {
        let stopping = failure.is_some() || stop.is_cancelled();
        if let Some(order) = next.take_if(|order| !ids.contains(&order.id) && !stopping) {
            line = order.line;
            bytes += order.bytes;
            ids.insert(order.id);
            on_their_way.push(on_its_way(&record, order));
        }
        let reading = !ended && !stopping;
        if on_their_way.is_empty() && !reading {
            break;
        }
        let room = next.is_none() && on_their_way.len() < MAX_ORDERS && bytes < MAX_BYTES;
        tokio::select! {
            Some(arrival) = on_their_way.next() => {
                ids.remove(&arrival.id);
                bytes -= arrival.bytes;
                match arrival.add_to(&mut summary) {
                    Ok(()) => {}
                    Err(Trouble::Rejected(rejection)) => progress.reject(&rejection)?,
                    Err(Trouble::Failed(error)) => failure = failure.or(Some(error)),
                }
            }
            entry = entries.recv(), if reading && room => match entry {
                Some(Entry::Order(order)) => next = Some(order),
                Some(Entry::Rejected(rejection)) => {
                    summary.reject(&rejection);
                    progress.reject(&rejection)?;
                }
                Some(Entry::EndsEarly { last_good_line, reason }) => {
                    ending = Ending::EndsEarly { last_good_line, reason };
                }
                None => ended = true,
            },
            () = stop.cancelled(), if !stopping => {}
            _ = tick.tick() => progress.show(&summary),
        }
    }
    summary.took(started.elapsed());
    Ok(match failure {
        Some(error) => (summary, Ending::Failed { line, error }),
        None if stop.is_cancelled() => (summary, Ending::Stopped { line }),
        None => (summary, ending),
    })
}

/// An order that was on its way, and what became of it.
struct Arrival {
    id: OrderId,
    line: u64,
    lines: u64,
    lines_dropped: u64,
    amount_cents: i64,
    bytes: usize,
    recorded: Result<Recorded, StoreError>,
}

enum Trouble {
    Rejected(Rejection),
    Failed(StoreError),
}

async fn on_its_way(
    record: &impl AsyncFn(OrderId, Purchase) -> Result<Recorded, StoreError>,
    order: FileOrder,
) -> Arrival {
    let FileOrder { id, line, purchase, lines_dropped, bytes } = order;
    let (lines, amount_cents) = (purchase.lines.len() as u64, purchase.amount_cents);
    Arrival { id, line, lines, lines_dropped, amount_cents, bytes, recorded: record(id, purchase).await }
}

impl Arrival {
    fn add_to(self, summary: &mut Summary) -> Result<(), Trouble> {
        match self.recorded.map_err(Trouble::Failed)? {
            Recorded::Now => {
                summary.orders_accepted += 1;
                summary.lines_accepted += self.lines;
                summary.amount_cents += self.amount_cents;
            }
            Recorded::Before => summary.orders_already_there += 1,
            Recorded::Refused(fault) => {
                let rejection = Rejection { line: self.line, order: Some(self.id), fault, lines_dropped: 0 };
                summary.reject(&rejection);
                return Err(Trouble::Rejected(rejection));
            }
        }
        summary.lines_dropped += self.lines_dropped;
        Ok(())
    }
}

//! The log for a partition that is behind: pages are read by a task of their own, while those before them are applied.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    store::{Annals, ReadLog},
    subscription::recent::{Filter, Found},
};

/// A page, and how long it took to read.
pub(super) type Page = (Found, Duration);

/// Pages of the log up to where it ended when the first was asked for, `limit` wanted events each. One waits here, one is read
/// meanwhile.
pub(super) struct Pages {
    epoch: u64,
    limit: usize,
    /// Behind where the next page begins.
    after: Position,
    read: mpsc::Receiver<Result<Page, StoreError>>,
    _reading: AbortOnDropHandle<()>,
}

impl Pages {
    /// Begins to read behind `after`, up to `last`.
    pub(super) fn begin(
        store: &Annals,
        filter: &Filter,
        epoch: u64,
        (after, last): (Position, Position),
        limit: usize,
    ) -> Self {
        let (sender, read) = mpsc::channel(1);
        let (store, filter) = (store.clone(), filter.clone());
        let reading = async move {
            let (mut behind, mut dense) = (after, false);
            loop {
                let page = read_page(&store, &filter, (behind, last), limit, dense).await;
                let next = page.as_ref().ok().map(|((found, _), is_dense)| (found.last, found.all, *is_dense));
                if sender.send(page.map(|(page, _)| page)).await.is_err() {
                    return;
                }
                let Some((Some(last), false, is_dense)) = next else { return };
                (behind, dense) = (last, is_dense);
            }
        };
        Self { epoch, limit, after, read, _reading: AbortOnDropHandle::new(tokio::spawn(reading)) }
    }

    /// Whether the next page is this one.
    pub(super) fn is_at(&self, epoch: u64, after: Position, limit: usize) -> bool {
        (self.epoch, self.after, self.limit) == (epoch, after, limit)
    }

    /// The next page; none behind the last one, or one that could not be read.
    pub(super) async fn next(&mut self) -> Option<Result<Page, StoreError>> {
        let page = self.read.recv().await;
        if let Some(Ok((found, _))) = &page {
            self.after = found.last.unwrap_or(self.after);
        }
        page
    }
}

/// Reads a page. Where most of what was looked through before was wanted, the database sends all, and the rest is left out
/// here; that is cheaper than to let it look. Returns whether it is so in this page, too.
async fn read_page(
    store: &Annals,
    filter: &Filter,
    (after, last): (Position, Position),
    limit: usize,
    dense: bool,
) -> Result<(Page, bool), StoreError> {
    let begun = Instant::now();
    let mut read = ReadLog { after, ..ReadLog::default() };
    if !dense {
        read.categories = filter.categories.clone();
        read.skipped_types = filter.skips.iter().map(ToString::to_string).collect();
    }
    let page = store.read_final(&read, last, limit).await?;
    // A page that is the last one looked through everything up to the position that was `last` when it was asked for.
    let (to, all) = (page.next.unwrap_or(last), page.next.is_none());
    let meant: Vec<Recorded<Payload>> = match dense {
        true => page.events.into_iter().filter(|event| filter.is_meant(event)).collect(),
        false => page.events,
    };
    let dense = meant.len() as i64 * 3 >= (to.get() - after.get()) * 2;
    let events = meant.into_iter().filter(|event| filter.has(event)).map(Arc::new).collect();
    Ok(((Found { events, last: Some(to), all }, begun.elapsed()), dense))
}

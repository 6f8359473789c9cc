//! One command on each of two aggregates, decided and appended together.

use super::{
    Answer, Counters, Options, record,
    repository::{Decision, Order, Repository, find_repeated},
    state::State,
};
use crate::{
    Aggregate, InvalidInput, Position, Receipt, StreamId, Version,
    error::{ExecuteError, StoreError},
    store::{Annals, Append, Appended, CommandRecord, Work},
};

/// Which of two aggregates refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Either<A, B> {
    /// The first.
    #[error(transparent)]
    First(A),
    /// The second.
    #[error(transparent)]
    Second(B),
}

/// A repository, a stream of it, and the command for it.
pub(crate) type Side<'a, A> = (&'a Repository<A>, StreamId, &'a <A as Aggregate>::Command);
type Both<A, B, T> = Result<T, ExecuteError<Either<<A as Aggregate>::Error, <B as Aggregate>::Error>>>;
type Receipts = (Receipt, Receipt);

/// Handles two commands, and appends what both decide, or nothing if one refuses.
pub(crate) async fn execute_both<A: Aggregate, B: Aggregate>(
    first: Side<'_, A>,
    second: Side<'_, B>,
    options: Options,
) -> Both<A, B, Receipts> {
    let order = Order::new(options, &first.0.store);
    let result = execute_order(&first, &second, &order).await;
    // A rejection is counted where it was said, everything else on both sides.
    if !matches!(result, Err(ExecuteError::Rejected(Either::Second(_)))) {
        first.0.count(&first.1, &order, &result);
    }
    if !matches!(result, Err(ExecuteError::Rejected(Either::First(_)))) {
        second.0.count(&second.1, &order, &result);
    }
    result.map(Answer::into_inner)
}

async fn execute_order<A: Aggregate, B: Aggregate>(
    (a, stream_a, command_a): &Side<'_, A>,
    (b, stream_b, command_b): &Side<'_, B>,
    order: &Order,
) -> Both<A, B, Answer<Receipts>> {
    if stream_a == stream_b {
        return Err(InvalidInput::Other(format!("both commands go to {stream_a}: make them one command")).into());
    }
    let record = record(&order.metadata, &a.store, &[(stream_a, command_a), (stream_b, command_b)])?;
    let (slot_a, slot_b) = (a.slot(stream_a), b.slot(stream_b));
    // In the order of the names, so that two such commands never wait for each other in a circle.
    let (mut state_a, mut state_b);
    if stream_a < stream_b {
        state_a = order.lock(&slot_a).await?;
        state_b = order.lock(&slot_b).await?;
    } else {
        state_b = order.lock(&slot_b).await?;
        state_a = order.lock(&slot_a).await?;
    }
    let (mut proved_a, mut proved_b) = (false, false);
    for attempt in 0.. {
        let decision_a = Decision::of(&state_a, command_a, &order.context);
        let decision_b = Decision::of(&state_b, command_b, &order.context);
        let (unproved_a, unproved_b) = (!proved_a && !decision_a.appends(), !proved_b && !decision_b.appends());
        if unproved_a {
            a.refresh(&mut state_a, stream_a, order).await?;
            proved_a = true;
        }
        if unproved_b {
            b.refresh(&mut state_b, stream_b, order).await?;
            proved_b = true;
        }
        if unproved_a || unproved_b {
            continue;
        }
        let rejection = match (decision_a, decision_b) {
            (Decision::Rejected(rejection), _) => Either::First(rejection),
            (_, Decision::Rejected(rejection)) => Either::Second(rejection),
            (decision_a, decision_b) => {
                let (events_a, events_b) = (decision_a.into_events(), decision_b.into_events());
                if events_a.is_empty() && events_b.is_empty() && record.is_none() {
                    return Ok(Answer::Empty((state_a.standing(), state_b.standing())));
                }
                let encoded = a
                    .encode(stream_a, state_a.version, &events_a)
                    .and_then(|first| Ok(vec![first, b.encode(stream_b, state_b.version, &events_b)?]));
                let result = match encoded {
                    Ok(appends) => append(a, appends, &record, order).await,
                    Err(error) => Err(error.into()),
                };
                match result {
                    Ok(Appended::Written(receipts)) => {
                        let receipt_a = settle(a, &mut state_a, stream_a, &events_a, receipts.first());
                        let receipt_b = settle(b, &mut state_b, stream_b, &events_b, receipts.get(1));
                        return Ok(match receipt_a.appended + receipt_b.appended {
                            0 => Answer::Empty((receipt_a, receipt_b)),
                            _ => Answer::Events((receipt_a, receipt_b)),
                        });
                    }
                    Ok(Appended::Repeated) => {
                        if let Some(receipts) = find_receipts(&a.store, stream_a, stream_b, &record, order).await? {
                            return Ok(Answer::Repeated(receipts));
                        }
                    }
                    Err(StoreError::Conflict { .. }) => {
                        Counters::add(&a.counters.conflicts);
                        order.pause(attempt).await?;
                        a.refresh(&mut state_a, stream_a, order).await?;
                        b.refresh(&mut state_b, stream_b, order).await?;
                        (proved_a, proved_b) = (true, true);
                    }
                    // What an old state led to says nothing about the commands.
                    Err(StoreError::Invalid(_)) if !(proved_a && proved_b) => {
                        a.refresh(&mut state_a, stream_a, order).await?;
                        b.refresh(&mut state_b, stream_b, order).await?;
                        (proved_a, proved_b) = (true, true);
                    }
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
        };
        return match find_receipts(&a.store, stream_a, stream_b, &record, order).await? {
            Some(receipts) => Ok(Answer::Repeated(receipts)),
            None => Err(ExecuteError::Rejected(rejection)),
        };
    }
    Err(StoreError::Closed.into())
}

async fn append<A: Aggregate>(
    a: &Repository<A>,
    appends: Vec<Append>,
    record: &Option<CommandRecord>,
    order: &Order,
) -> Result<Appended, StoreError> {
    let work = Work::new(appends, order.metadata.clone(), record.clone(), &a.store.config().limits)?;
    a.store.inner.appender.append(work, order.left()?).await
}

fn settle<A: Aggregate>(
    repository: &Repository<A>,
    state: &mut State<A>,
    stream: &StreamId,
    events: &[A::Event],
    receipt: Option<&Receipt>,
) -> Receipt {
    match receipt {
        Some(receipt) if !events.is_empty() => {
            repository.advance(state, stream, events, *receipt);
            *receipt
        }
        _ => state.standing(),
    }
}

/// The first receipts of a command whose id is known: where its streams stood when it took effect.
async fn find_receipts(
    store: &Annals,
    stream_a: &StreamId,
    stream_b: &StreamId,
    record: &Option<CommandRecord>,
    order: &Order,
) -> Result<Option<Receipts>, StoreError> {
    let Some(found) = find_repeated(store, record, order).await? else { return Ok(None) };
    // The version is that of the first stream, the position that of the last event of both.
    let first = standing_at(store, stream_a, found.version.get(), i64::MAX).await?;
    let second = standing_at(store, stream_b, i64::MAX, found.position.get()).await?;
    Ok(Some((first, second)))
}

async fn standing_at(store: &Annals, stream: &StreamId, version: i64, position: i64) -> Result<Receipt, StoreError> {
    let row: Option<(i64, i64)> = store
        .inner
        .read("look up a command", |mut conn| {
            let (sql, stream) = (store.inner.sql.read_standing.clone(), stream.clone());
            async move {
                let query = sql.typed().bind(stream.as_str()).bind(version).bind(position);
                query.fetch_optional(&mut *conn).await
            }
        })
        .await?;
    let (version, position) = row.unwrap_or_default();
    Ok(Receipt { version: Version::new(version), position: Position::new(position), appended: 0 })
}

//! The gateway's HTTP.

use std::{
    collections::HashMap,
    io,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use annals::BoxError;
use axum::{
    Json, Router,
    body::Body,
    extract::{Path as In, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use serde::Serialize;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Switches,
    api::{Refusal, ToCharge, ToRefund, ToSend, ToShip},
    books::{Answer, Asked, Books},
};
use crate::{order::MAX_ORDER_CENTS, say::say};

/// Where it listens unless it is told.
pub(crate) const DEFAULT_PORT: u16 = 4010;

const HUGE: usize = 10 * 1024 * 1024;

struct Gateway {
    inner: Mutex<Inner>,
}

struct Inner {
    books: Books,
    switches: Switches,
    /// How often each thing was asked about, for the choice of those that go wrong.
    asked: HashMap<String, u32>,
    calls: u64,
}

impl Gateway {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on `port`, with its books in `folder`, until `stop`.
///
/// # Errors
/// The port is taken, or the books cannot be used.
pub(crate) async fn run(
    port: u16,
    folder: &Path,
    switches: Switches,
    stop: &CancellationToken,
) -> Result<ExitCode, BoxError> {
    let books = Books::open(folder)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        format!("cannot listen on port {port}: {error}; choose another with --port, or 0 for any that is free")
    })?;
    say(format_args!("gateway: http://{}", listener.local_addr()?))?;
    tokio::select! {
        ended = serve(listener, books, switches) => ended?,
        // What was answered is in the books: nothing else needs an end in good order.
        () = stop.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers whoever connects, for as long as it is awaited.
///
/// # Errors
/// The listener fails.
pub(super) async fn serve(listener: TcpListener, books: Books, switches: Switches) -> io::Result<()> {
    let inner = Inner { books, switches, asked: HashMap::new(), calls: 0 };
    axum::serve(listener, router(Arc::new(Gateway { inner: Mutex::new(inner) }))).await
}

fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/charges", post(charge))
        .route("/charges/by-key/{key}", get(by_key))
        .route("/refunds", post(refund))
        .route("/shipments", post(ship))
        .route("/shipments/{id}/cancel", post(cancel))
        .route("/messages", post(send))
        .route("/ledger", get(ledger))
        .route("/switches", get(read_switches).put(put_switches))
        .with_state(gateway)
}

type Shared = State<Arc<Gateway>>;

async fn charge(State(gateway): Shared, headers: HeaderMap, Json(asked): Json<ToCharge>) -> Response {
    // So that the sums over the books can be counted.
    if !(0..=MAX_ORDER_CENTS).contains(&asked.cents) || asked.order.is_empty() {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "a charge is for an order, of 0 cents to a billion dollars");
    }
    let subject = asked.order.clone();
    under_key(&gateway, &headers, &subject, Asked::Charge(asked)).await
}

async fn refund(State(gateway): Shared, headers: HeaderMap, Json(asked): Json<ToRefund>) -> Response {
    let subject = asked.charge.clone();
    under_key(&gateway, &headers, &subject, Asked::Refund(asked)).await
}

async fn ship(State(gateway): Shared, headers: HeaderMap, Json(asked): Json<ToShip>) -> Response {
    let subject = asked.order.clone();
    under_key(&gateway, &headers, &subject, Asked::Ship(asked)).await
}

async fn cancel(State(gateway): Shared, headers: HeaderMap, In(id): In<String>) -> Response {
    under_key(&gateway, &headers, &id.clone(), Asked::CancelShipment(id)).await
}

async fn send(State(gateway): Shared, headers: HeaderMap, Json(asked): Json<ToSend>) -> Response {
    if asked.customer.is_empty() || asked.text.is_empty() {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "a message is for a customer, and says something");
    }
    let subject = asked.order.clone();
    under_key(&gateway, &headers, &subject, Asked::Send(asked)).await
}

async fn by_key(State(gateway): Shared, In(key): In<String>) -> Response {
    through_switches(&gateway, "by-key", &key, |inner, _| {
        let found = inner.books.by_key(&key)?;
        Ok(found.map_or_else(|| answered(Answer::Declined), |found| (StatusCode::OK, Json(found)).into_response()))
    })
    .await
}

async fn ledger(State(gateway): Shared) -> Response {
    let inner = gateway.lock();
    Json(inner.books.ledger(inner.calls)).into_response()
}

async fn read_switches(State(gateway): Shared) -> Response {
    Json(gateway.lock().switches.clone()).into_response()
}

async fn put_switches(State(gateway): Shared, Json(switches): Json<Switches>) -> Response {
    if let Err(error) = switches.check() {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, &error);
    }
    gateway.lock().switches = switches.clone();
    Json(switches).into_response()
}

/// Carries out what is asked under the key that the headers name.
async fn under_key(gateway: &Gateway, headers: &HeaderMap, subject: &str, asked: Asked) -> Response {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > 200 {
        return refused(StatusCode::BAD_REQUEST, "a header Idempotency-Key of 1 to 200 letters is needed");
    }
    let what = match asked {
        Asked::Charge(_) => "charge",
        Asked::Refund(_) => "refund",
        Asked::Ship(_) => "ship",
        Asked::CancelShipment(_) => "cancel",
        Asked::Send(_) => "send",
    };
    through_switches(gateway, what, subject, |inner, nth| {
        let switches = &inner.switches;
        // A card that is declined is declined however often it is tried.
        let declined = switches.meets("declined", switches.declined, subject, 0);
        let refuses = match asked {
            Asked::Refund(_) => switches.meets("refunds_refused", switches.refunds_refused, subject, nth),
            Asked::Ship(_) => switches.meets("shipments_refused", switches.shipments_refused, subject, 0),
            _ => false,
        };
        if refuses {
            return Ok(refused(StatusCode::UNPROCESSABLE_ENTITY, &format!("the {what} is refused")));
        }
        let twice = switches.meets("duplicates", switches.duplicates, subject, nth);
        let mut answer = inner.books.handle(key, asked.clone(), declined)?;
        if twice {
            answer = inner.books.handle(key, asked.clone(), declined)?;
        }
        Ok(answered(answer))
    })
    .await
}

/// Lets `work` answer request number `nth` about `subject`, unless a switch says otherwise.
async fn through_switches(
    gateway: &Gateway,
    what: &str,
    subject: &str,
    work: impl FnOnce(&mut Inner, u32) -> io::Result<Response>,
) -> Response {
    let (switches, nth, answer) = {
        let mut inner = gateway.lock();
        inner.calls += 1;
        let nth = inner.asked.entry(format!("{what} {subject}")).or_default();
        *nth += 1;
        let (nth, switches) = (*nth, inner.switches.clone());
        let meets = |name: &str, share: f64| switches.meets(&format!("{what} {name}"), share, subject, nth);
        if switches.outage {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "out of service");
        }
        if meets("throttled", switches.throttled) {
            let mut answer = refused(StatusCode::TOO_MANY_REQUESTS, "too many requests");
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(switches.retry_after));
            return answer;
        }
        if meets("transient", switches.transient) {
            return refused(StatusCode::INTERNAL_SERVER_ERROR, "out of order for a moment");
        }
        match work(&mut inner, nth) {
            Ok(answer) => (switches, nth, answer),
            Err(error) => {
                return refused(StatusCode::INTERNAL_SERVER_ERROR, &format!("the books cannot be written: {error}"));
            }
        }
    };
    let meets = |name: &str, share: f64| switches.meets(&format!("{what} {name}"), share, subject, nth);
    if meets("slow", switches.slow) {
        sleep(Duration::from_millis(switches.slow_ms)).await;
    }
    if meets("silent", switches.silent) {
        std::future::pending::<()>().await;
    }
    if meets("lost", switches.lost) {
        // A body that fails cuts the connection.
        let cut = stream::iter([Err::<Vec<u8>, _>(io::Error::other("cut off"))]);
        return Body::from_stream(cut).into_response();
    }
    if meets("garbage", switches.garbage) {
        return "<html>it works</html>".into_response();
    }
    if meets("huge", switches.huge) {
        return vec![b' '; HUGE].into_response();
    }
    answer
}

fn answered(answer: Answer) -> Response {
    fn done(what: impl Serialize) -> Response {
        Json(what).into_response()
    }
    match answer {
        Answer::Charged(charge) => done(charge),
        Answer::Refunded(refund) => done(refund),
        Answer::Shipped(shipment) => done(shipment),
        Answer::Sent(message) => done(message),
        Answer::Declined => refused(StatusCode::PAYMENT_REQUIRED, "declined"),
        Answer::Closed => refused(StatusCode::CONFLICT, "closed"),
        Answer::RefundedBefore => refused(StatusCode::UNPROCESSABLE_ENTITY, "refunded before, under another key"),
        Answer::Missing(id) => refused(StatusCode::NOT_FOUND, &format!("there is no {id}")),
        Answer::OtherContents => refused(StatusCode::BAD_REQUEST, "the key was used before, with other contents"),
    }
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, Json(Refusal { error: error.into() })).into_response()
}

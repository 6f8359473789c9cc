//! The client and the gateway, over HTTP.

use std::time::{Duration, Instant};

use annals::{FailureKind, StepError};
use tokio::{net::TcpListener, task::AbortHandle};
use uuid::Uuid;

use super::{
    super::{
        client::{Client, wait},
        server::serve,
    },
    *,
};

/// A gateway that answers over HTTP for as long as it is held.
pub(crate) struct Running {
    pub(crate) client: Client,
    folder: Folder,
    server: AbortHandle,
}

impl Running {
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(serve(listener, folder.open(), Switches::default())).abort_handle();
        Self { client: Client::patient(&url, Duration::from_millis(300)).unwrap(), folder, server }
    }

    /// What a charge of an order of its own fails with while the switches stand so; and whether it was charged.
    async fn fails(&self, switches: Switches) -> (FailureKind, String, bool) {
        let key = Uuid::now_v7();
        self.client.switch(&switches).await.unwrap();
        let error = self.client.charge(key, &key.to_string(), 100).await.unwrap_err();
        self.client.switch(&Switches::default()).await.unwrap();
        let charged = self.client.ledger().await.unwrap().charges.iter().any(|charge| charge.order == key.to_string());
        // Asked, it says the same: it was charged, it was not and never will be, or it was declined.
        match self.client.charged(key).await {
            Ok(found) => assert_eq!(matches!(found, annals::Found::Happened(_)), charged),
            Err(no) => {
                assert_eq!((no.kind(), error.kind(), charged), (FailureKind::Business, FailureKind::Business, false))
            }
        }
        (error.kind(), error.to_string(), charged)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
        let _ = &self.folder;
    }
}

fn kind<T>(answer: Result<T, StepError>) -> (FailureKind, String) {
    answer.err().map(|error| (error.kind(), error.to_string())).unwrap()
}

#[tokio::test]
async fn each_way_to_fail_says_whether_it_may_have_happened() {
    let gateway = Running::start();
    let none = Switches::default;
    use FailureKind::{Business, Transient, Unknown};

    for (switches, kind, part, charged) in [
        (Switches { declined: 1.0, ..none() }, Business, "declined", false),
        (Switches { transient: 1.0, ..none() }, Transient, "out of order", false),
        (Switches { outage: true, ..none() }, Transient, "out of service", false),
        (Switches { throttled: 1.0, ..none() }, Transient, "asked too often", false),
        (Switches { lost: 1.0, ..none() }, Unknown, "the gateway", true),
        (Switches { silent: 1.0, ..none() }, Unknown, "did not answer", true),
        (Switches { slow: 1.0, slow_ms: 60_000, ..none() }, Unknown, "did not answer", true),
        (Switches { garbage: 1.0, ..none() }, Unknown, "cannot be read", true),
        (Switches { huge: 1.0, ..none() }, Unknown, "longer than 65536 bytes", true),
    ] {
        let failed = gateway.fails(switches.clone()).await;
        assert!(failed.0 == kind && failed.1.contains(part) && failed.2 == charged, "{switches:?}: {failed:?}");
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let gateway = Running::start();
    gateway.client.switch(&Switches { throttled: 1.0, retry_after: 7, ..Switches::default() }).await.unwrap();

    let error = gateway.client.charge(Uuid::now_v7(), "1", 100).await.unwrap_err();

    assert_eq!(error, StepError::transient("the gateway is asked too often").retry_after(Duration::from_secs(7)));
}

#[test]
fn when_to_come_back_is_said_in_seconds_or_as_a_time() {
    let now = "2026-11-06T08:49:30Z".parse().unwrap();
    let seconds = |said: &str| wait(said, now).map(|wait| wait.as_secs());

    assert_eq!([seconds("0"), seconds("7")], [Some(0), Some(7)]);
    assert_eq!(seconds("Fri, 06 Nov 2026 08:49:37 GMT"), Some(7));
    assert_eq!(seconds("Fri, 06 Nov 2026 08:49:29 GMT"), None);
    assert!(["", "soon", "-1", "2026-11-06"].iter().all(|said| seconds(said).is_none()));
}

#[tokio::test]
async fn a_gateway_that_is_not_there_has_done_nothing() {
    let gateway = Running::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);

    let (kind, error) = kind(nowhere.charge(Uuid::now_v7(), "1", 100).await);

    assert_eq!(kind, FailureKind::Transient);
    assert!(error.starts_with("the gateway is not there: "), "{error}");
    assert!(nowhere.ledger().await.unwrap_err().to_string().contains("is it there?"));
    for url in ["", "gateway", "https://127.0.0.1:1"] {
        assert!(Client::new(url).unwrap_err().to_string().contains("no address of a gateway"), "{url}");
    }
    drop(gateway);
}

#[tokio::test]
async fn a_payment_is_taken_once_given_back_once_and_closed_keys_take_none() {
    let gateway = Running::start();
    let client = &gateway.client;
    client.switch(&Switches { duplicates: 1.0, ..Switches::default() }).await.unwrap();
    let [pay, other, refund, ship, cancel] = [(); 5].map(|()| Uuid::now_v7());

    let charge = client.charge(pay, "1", 100).await.unwrap();
    assert_eq!(client.charge(pay, "1", 100).await.unwrap(), charge);
    assert_eq!(kind(client.charge(pay, "1", 200).await).0, FailureKind::Unknown);
    assert_eq!(kind(client.refund(pay, &charge.id).await).0, FailureKind::Unknown);
    assert_eq!(client.charged(pay).await.unwrap(), annals::Found::Happened(charge.clone()));
    assert_eq!(client.charged(other).await.unwrap(), annals::Found::Never);
    assert_eq!(kind(client.charge(other, "2", 100).await), (FailureKind::Transient, "the key is closed".into()));
    let refunded = client.refund(refund, &charge.id).await.unwrap();
    assert_eq!(client.refund(refund, &charge.id).await.unwrap(), refunded);
    assert!(kind(client.refund(Uuid::now_v7(), "charge-99").await).1.contains("there is no charge-99"));
    let shipment = client.ship(ship, "1").await.unwrap();
    assert_eq!(client.ship(ship, "1").await.unwrap(), shipment);
    assert!(client.cancel_shipment(cancel, &shipment.id).await.unwrap().cancelled);

    let ledger = client.ledger().await.unwrap();
    assert_eq!((ledger.charges.len(), ledger.refunds.len(), ledger.shipments.len()), (1, 1, 1));
    assert_eq!((ledger.charged_cents, ledger.refunded_cents), (100, 100));
    assert!(ledger.shipments[0].cancelled);
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_no_longer_than_is_said() {
    let gateway = Running::start();
    gateway.client.switch(&Switches { silent: 1.0, ..Switches::default() }).await.unwrap();
    let begun = Instant::now();

    let error = gateway.client.charge(Uuid::now_v7(), "1", 100).await.unwrap_err();

    assert_eq!(error.kind(), FailureKind::Unknown);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

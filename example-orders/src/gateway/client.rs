//! The shop's side of the gateway: what its answers, and their absence, mean to a step.

use std::time::Duration;

use annals::{BoxError, StepError};
use chrono::{DateTime, Utc};
use reqwest::{Method, Response, StatusCode, header::RETRY_AFTER};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Switches,
    api::{Charge, Found, Ledger, Message, Refund, Refusal, Shipment, ToCharge, ToRefund, ToSend, ToShip},
};
use crate::with_causes;

/// Where a gateway is unless somebody says otherwise.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:4010";

/// How long a connection may take, and a request with its answer.
const CONNECTING: Duration = Duration::from_secs(2);
const ANSWERING: Duration = Duration::from_secs(5);
/// More than any answer to a step has.
const MOST_BYTES: usize = 64 * 1024;

/// Calls a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
}

impl Client {
    /// For the gateway at `url`. Nothing is called yet.
    ///
    /// # Errors
    /// `url` is no address of a gateway.
    pub(crate) fn new(url: &str) -> Result<Self, BoxError> {
        Self::patient(url, ANSWERING)
    }

    /// One that waits `longest` for an answer.
    pub(super) fn patient(url: &str, longest: Duration) -> Result<Self, BoxError> {
        let refused = |why: &str| format!("{url:?} is no address of a gateway, such as {DEFAULT_URL}: {why}");
        let parsed = reqwest::Url::parse(url).map_err(|error| refused(&error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(refused("it does not begin with http://").into());
        }
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECTING).timeout(longest).build()?;
        Ok(Self { url: url.trim_end_matches('/').into(), http })
    }

    /// Takes a payment.
    ///
    /// # Errors
    /// As every step. A card that is declined is business; so is whatever else the gateway refuses for good.
    pub(crate) async fn charge(&self, key: Uuid, order: &str, cents: i64) -> Result<Charge, StepError> {
        self.post("charges", key, &ToCharge { order: order.into(), cents }).await
    }

    /// What became of the payment under `key`. The gateway refuses a key from then on that it was asked about and does not know.
    ///
    /// # Errors
    /// That it was declined is said as such; after any other error it is not known.
    pub(crate) async fn charged(&self, key: Uuid) -> Result<annals::Found<Charge>, StepError> {
        let sent = self.request(Method::GET, &format!("charges/by-key/{key}")).send().await;
        // Only this one answer is about the payment. Every other refusal is about the question.
        if let Ok(response) = &sent
            && response.status() == StatusCode::PAYMENT_REQUIRED
        {
            return Err(StepError::refused("declined"));
        }
        let found: Found = answer(sent).await?;
        Ok(found.charge.map_or(annals::Found::Never, annals::Found::Happened))
    }

    /// Gives a payment back.
    ///
    /// # Errors
    /// As every step.
    pub(crate) async fn refund(&self, key: Uuid, charge: &str) -> Result<Refund, StepError> {
        self.post("refunds", key, &ToRefund { charge: charge.into() }).await
    }

    /// Books a shipment.
    ///
    /// # Errors
    /// As every step.
    pub(crate) async fn ship(&self, key: Uuid, order: &str) -> Result<Shipment, StepError> {
        self.post("shipments", key, &ToShip { order: order.into() }).await
    }

    /// Calls a shipment off.
    ///
    /// # Errors
    /// As every step.
    pub(crate) async fn cancel_shipment(&self, key: Uuid, id: &str) -> Result<Shipment, StepError> {
        self.post(&format!("shipments/{id}/cancel"), key, &()).await
    }

    /// Sends a message to a customer.
    ///
    /// # Errors
    /// As every step.
    pub(crate) async fn send(&self, key: Uuid, message: &ToSend) -> Result<Message, StepError> {
        self.post("messages", key, message).await
    }

    /// The gateway's books.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn ledger(&self) -> Result<Ledger, BoxError> {
        let sent = self.request(Method::GET, "ledger").timeout(ANSWERING * 10).send().await;
        Ok(sent.and_then(Response::error_for_status).map_err(|error| self.unreached(&error))?.json().await?)
    }

    /// Sets the gateway's switches.
    ///
    /// # Errors
    /// It does not answer, or refuses them.
    pub(crate) async fn switch(&self, switches: &Switches) -> Result<(), BoxError> {
        let sent = self.request(Method::PUT, "switches").json(switches).send().await;
        sent.and_then(Response::error_for_status).map_err(|error| self.unreached(&error))?;
        Ok(())
    }

    fn unreached(&self, error: &reqwest::Error) -> String {
        format!("the gateway at {} cannot be asked: {}; is it there?", self.url, said(error))
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/{path}", self.url))
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, key: Uuid, body: &impl Serialize) -> Result<T, StepError> {
        let request = self.request(Method::POST, path).header("idempotency-key", key.to_string()).json(body);
        answer(request.send().await).await
    }
}

/// What an answer, or none, means: has it happened, not happened, or is that not known?
async fn answer<T: DeserializeOwned>(sent: Result<Response, reqwest::Error>) -> Result<T, StepError> {
    let response = match sent {
        Ok(response) => response,
        // Nothing was sent: nothing has happened.
        Err(error) if error.is_connect() => {
            return Err(StepError::transient(format!("the gateway is not there: {}", said(&error))));
        }
        Err(error) => return Err(StepError::unknown(format!("the gateway did not answer: {}", said(&error)))),
    };
    let status = response.status();
    let wait = response.headers().get(RETRY_AFTER).and_then(|said| wait(said.to_str().ok()?, Utc::now()));
    let body = body(response).await;
    let refusal = || {
        let read = body.as_ref().ok().and_then(|body| serde_json::from_slice::<Refusal>(body).ok());
        read.map_or_else(|| status.to_string(), |refusal| refusal.error)
    };
    match status {
        StatusCode::OK => {
            let body = body.as_ref().map_err(StepError::unknown)?;
            serde_json::from_slice(body)
                .map_err(|error| StepError::unknown(format!("the gateway's answer cannot be read: {error}")))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let error = StepError::transient("the gateway is asked too often");
            Err(wait.map_or(error.clone(), |wait| error.retry_after(wait)))
        }
        // Somebody asked what became of the key, and was told none: whoever still uses it is behind the times, and nothing has happened.
        StatusCode::CONFLICT => Err(StepError::transient(format!("the key is {}", refusal()))),
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE => Err(StepError::transient(refusal())),
        // A no to what was asked for.
        StatusCode::PAYMENT_REQUIRED | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::NOT_FOUND => {
            Err(StepError::business(refusal()))
        }
        // A no to who asks, or how: our own mistake, which says nothing of the order and is no reason to give it up.
        status if status.is_client_error() => {
            Err(StepError::unknown(format!("the gateway refuses to be asked: {}", refusal())))
        }
        status => Err(StepError::unknown(format!("the gateway answered {status}"))),
    }
}

/// How long to wait by a `Retry-After`, which is so many seconds, or a time in the words of RFC 2822. None once that is past.
pub(super) fn wait(said: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = said.parse() {
        return Some(Duration::from_secs(seconds));
    }
    (DateTime::parse_from_rfc2822(said).ok()?.to_utc() - now).to_std().ok()
}

/// The body, unless it is longer than any answer should be.
async fn body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = vec![];
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MOST_BYTES => {
                return Err(format!("the gateway's answer is longer than {MOST_BYTES} bytes"));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => return Err(format!("the gateway's answer was cut off: {}", said(&error))),
        }
    }
}

/// An error with its causes, which say more than it does.
fn said(error: &reqwest::Error) -> String {
    with_causes(error)
}

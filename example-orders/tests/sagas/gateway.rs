//! The gateway as a process of its own.

use std::{fs::OpenOptions, io::Write};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::*;

/// Posts `body` under `key`.
async fn post(url: &str, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
    let request = Client::new().post(format!("{url}/{path}")).header("Idempotency-Key", key).json(&body);
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn get(url: &str, path: &str) -> Value {
    Client::new().get(format!("{url}/{path}")).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn what_a_gateway_answered_it_answers_again_after_it_was_killed() {
    let folder = Folder::new();
    let (gateway, url) = Running::gateway(&[], &folder.0);
    let (_, first) = post(&url, "charges", "a", json!({"order": "1", "cents": 250})).await;
    let closed = get(&url, "charges/by-key/b").await;
    assert_eq!(closed, json!({"charge": null}));
    gateway.kill();
    let books = folder.0.join("books.jsonl");
    OpenOptions::new().append(true).open(books).unwrap().write_all(b"{\"Charged\":{\"key\":\"z\"").unwrap();

    let (_gateway, url) = Running::gateway(&[], &folder.0);

    let again = post(&url, "charges", "a", json!({"order": "1", "cents": 250})).await;
    assert_eq!(again, (StatusCode::OK, first.clone()));
    let other = post(&url, "charges", "a", json!({"order": "1", "cents": 251})).await;
    assert_eq!(other.0, StatusCode::BAD_REQUEST, "{other:?}");
    let closed = post(&url, "charges", "b", json!({"order": "2", "cents": 1})).await;
    assert_eq!(closed, (StatusCode::CONFLICT, json!({"error": "closed"})));
    assert_eq!(post(&url, "charges", "z", json!({"order": "3", "cents": 5})).await.0, StatusCode::OK);
    let unknown = post(&url, "refunds", "c", json!({"charge": "charge-9"})).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    let (_, refund) = post(&url, "refunds", "d", json!({"charge": first["id"]})).await;
    assert_eq!(refund["cents"], 250);
    let ledger = get(&url, "ledger").await;
    assert_eq!((&ledger["charged_cents"], &ledger["refunded_cents"]), (&json!(255), &json!(250)));
    assert_eq!(get(&url, "charges/by-key/a").await["charge"], first);
}

#[tokio::test]
async fn a_message_is_sent_once_under_its_key_and_listed() {
    let folder = Folder::new();
    let (gateway, url) = Running::gateway(&["--duplicates", "1"], &folder.0);
    let message = json!({"customer": "7", "order": "1", "text": "it is on its way"});
    let (status, first) = post(&url, "messages", "a", message.clone()).await;
    assert_eq!(status, StatusCode::OK);
    gateway.kill();

    let (_gateway, url) = Running::gateway(&[], &folder.0);

    assert_eq!(post(&url, "messages", "a", message).await, (StatusCode::OK, first.clone()));
    let empty = post(&url, "messages", "b", json!({"customer": "7", "order": "1", "text": ""})).await;
    assert_eq!(empty.0, StatusCode::UNPROCESSABLE_ENTITY, "{empty:?}");
    let other = post(&url, "messages", "a", json!({"customer": "7", "order": "1", "text": "it is lost"})).await;
    assert_eq!(other.0, StatusCode::BAD_REQUEST, "{other:?}");
    assert_eq!(get(&url, "ledger").await["messages"], json!([first]));
}

#[tokio::test]
async fn switches_change_while_it_runs() {
    let folder = Folder::new();
    let (_gateway, url) = Running::gateway(&["--declined", "1"], &folder.0);

    let declined = post(&url, "charges", "a", json!({"order": "1", "cents": 1})).await;
    assert_eq!(declined, (StatusCode::PAYMENT_REQUIRED, json!({"error": "declined"})));
    let switch = |switches: Value| Client::new().put(format!("{url}/switches")).json(&switches).send();
    assert_eq!(switch(json!({"outage": true})).await.unwrap().status(), StatusCode::OK);
    let switches = get(&url, "switches").await;
    assert_eq!((&switches["outage"], &switches["declined"]), (&json!(true), &json!(0.0)));
    let out = post(&url, "charges", "b", json!({"order": "1", "cents": 1})).await;
    assert_eq!(out.0, StatusCode::SERVICE_UNAVAILABLE);
    for bad in [json!({"declined": 2}), json!({"decline": 1}), json!(7)] {
        assert!(switch(bad).await.unwrap().status().is_client_error());
    }
    assert_eq!(switch(json!({})).await.unwrap().status(), StatusCode::OK);
    assert_eq!(post(&url, "charges", "b", json!({"order": "1", "cents": 1})).await.0, StatusCode::OK);
    // The card was declined: that does not change.
    assert_eq!(post(&url, "charges", "a", json!({"order": "1", "cents": 1})).await.0, StatusCode::PAYMENT_REQUIRED);
    let no_key = Client::new().post(format!("{url}/charges")).json(&json!({"order": "1", "cents": 1})).send().await;
    assert_eq!(no_key.unwrap().status(), StatusCode::BAD_REQUEST);
    for cents in [-1, i64::MAX] {
        let refused = post(&url, "charges", "c", json!({"order": "1", "cents": cents})).await;
        assert_eq!(refused.0, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_begin_says_why() {
    let (shop, folder) = (Shop::open().await, Folder::new());
    let (_gateway, url) = Running::gateway(&[], &folder.0);
    let port = url.rsplit(':').next().unwrap();

    let refused = shop.refused(&["gateway", "--port", port]);
    assert!(refused.contains("choose another with --port, or 0 for any"), "{refused}");
    let refused = shop.refused(&["gateway", "--port", "0", "--data", folder.0.to_str().unwrap()]);
    assert!(refused.contains("another gateway keeps these books"), "{refused}");
    assert_eq!(shop.run(&["gateway", "--declined", "1.5"]).status.code(), Some(2));
}

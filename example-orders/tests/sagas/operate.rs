//! What an operator sees of sagas and does about them.

use super::*;

const BECAUSE: [&str; 4] = ["--reason", "a test", "--by", "ada"];

/// Orders that are paid, cannot be shipped, and are not paid back. Returns their ids.
fn stuck(shop: &Shop, count: &str) -> Vec<String> {
    let arguments = ["--shipments-refused", "1", "--refunds-refused", "1", "--json"];
    let fulfilled = shop.object(&[&["fulfil", "--count", count][..], &arguments].concat(), 0);
    assert_eq!(fulfilled["stuck"].to_string(), count);
    let stuck = shop.objects(&["sagas", "list", "fulfilment", "--state", "stuck", "--json"], 0);
    stuck.iter().map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
}

fn list(id: &str) -> [&str; 6] {
    ["sagas", "list", "fulfilment", "--id", id, "--json"]
}

#[tokio::test]
async fn what_is_stuck_is_listed_shown_and_ended_by_an_operator() {
    let shop = Shop::open().await;
    let ids = stuck(&shop, "3");
    let [retried, skipped, resolved] = &ids[..] else { panic!("{ids:?}") };

    let table = shop.prints(&["sagas", "list", "--step", "pay"], 0);
    assert!(
        ids.iter().all(|id| table.contains(id)) && table.contains(&format!("sagas show fulfilment {retried}")),
        "{table}"
    );
    let instance = shop.object(&list(retried), 0);
    assert_eq!((&instance["state"], &instance["step"]), (&"stuck".into(), &"pay".into()));
    assert!(instance["reason"].as_str().unwrap().contains("the refund is refused"), "{instance}");
    let correlation = instance["correlation_id"].as_str().unwrap();
    assert_eq!(shop.objects(&["sagas", "list", "--correlation", correlation, "--json"], 0).len(), 1);
    assert_eq!(shop.prints(&["sagas", "list", "--older-than", "1h"], 0), "there is none\n");
    assert_eq!(shop.objects(&["sagas", "list", "--limit", "2", "--json"], 0).len(), 2);
    let shown = shop.prints(&["sagas", "show", "fulfilment", retried], 0);
    for part in ["accept", "reserve", "business: the ship is refused", "undo failed", "stuck", "known by outside"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let retry = format!("-- sagas retry fulfilment {retried} --reason \"the cause is mended\"");
    let skip = format!("-- sagas skip fulfilment {retried} pay --reason \"undone by hand\"");
    assert!(shown.contains(&retry) && shown.contains(&skip) && !shown.contains("sagas cancel"), "{shown}");

    shop.prints(&[&["sagas", "skip", "fulfilment", skipped, "pay"][..], &BECAUSE].concat(), 0);
    shop.prints(&[&["sagas", "resolve", "fulfilment", resolved, "--as", "compensated"][..], &BECAUSE].concat(), 0);
    let all = ["sagas", "retry", "fulfilment", "--all", "--because"];
    let said = shop.prints(&[&all[..], &["no such words"], &BECAUSE].concat(), 0);
    assert!(said.contains("0 of fulfilment that were stuck go on at once"), "{said}");
    let said = shop.prints(&[&all[..], &["the refund is refused"], &BECAUSE].concat(), 0);
    assert!(said.contains("1 of fulfilment that were stuck go on at once"), "{said}");
    assert!(said.contains("No process runs fulfilment at present"), "{said}");
    let (_gateway, url) = Running::gateway(&[], &shop.books());
    let _worker = shop.works(&url);
    for id in &ids {
        shop.wait_for(&list(id), "it is undone", |instance| instance["state"] == "compensated");
    }

    let moments = shop.objects(&["sagas", "show", "fulfilment", skipped, "--json"], 0);
    let skip = moments.iter().find(|moment| moment["what"] == "skipped").unwrap();
    assert_eq!((&skip["step"], &skip["actor"], &skip["reason"]), (&"pay".into(), &"ada".into(), &"a test".into()));
    let summary = shop.prints(&["sagas", "summary"], 0);
    assert!(summary.contains("fulfilment") && summary.contains("transfer"), "{summary}");
    // One was paid back; of the others an operator has said that they are not, or has ended it as it stood.
    let ledger: Value = reqwest::get(format!("{url}/ledger")).await.unwrap().json().await.unwrap();
    assert_eq!((ledger["charges"].as_array().unwrap().len(), ledger["refunds"].as_array().unwrap().len()), (3, 1));
    // What was resolved holds its goods still; of the money an operator has said enough.
    let reconciled = shop.run(&["reconcile", "--gateway", &url, "--json"]);
    let (said, notes) = (text(&reconciled.stdout), text(&reconciled.stderr));
    assert!(said.contains("\"ledger_equal\":true") && said.contains("\"stock_equal\":false"), "{said}{notes}");
    for id in [skipped, resolved] {
        assert!(notes.contains(&format!("order {id}: it was undone by an operator's word, and $")), "{notes}");
    }
    assert_eq!(notes.lines().count(), 2, "{notes}");
}

#[tokio::test]
async fn a_transfer_that_is_called_off_half_way_gives_the_money_back() {
    let shop = Shop::open().await;
    shop.run(&["transfer", "ada", "bob", "100", "--crash"]);
    let id = shop.object(&["sagas", "list", "transfer", "--json"], 0)["id"].as_str().unwrap().to_owned();
    shop.prints(&["sagas", "pause", "transfer"], 0);
    let said = shop.prints(&["sagas", "list", "transfer"], 0);
    assert!(said.contains("┆ paused"), "{said}");
    let said = shop.prints(&["sagas", "show", "transfer", &id], 0);
    let choices = ["-- sagas resume transfer ".into(), format!("-- sagas cancel transfer {id} --reason ")];
    assert!(choices.iter().all(|choice| said.contains(choice)), "{said}");
    shop.prints(&["sagas", "resume", "transfer"], 0);

    shop.prints(&[&["sagas", "cancel", "transfer", &id][..], &BECAUSE].concat(), 0);
    let said = shop.prints(&["transfer"], 1);

    assert!(said.contains("compensated") && said.contains("a test"), "{said}");
    let said = shop.prints(&["transfer", "ada", "bob", "1"], 0);
    assert!(said.contains("$999.99") && said.contains("$1,000.01"), "{said}");
}

#[tokio::test]
async fn a_saga_that_is_paused_begins_nothing_until_it_is_resumed() {
    let shop = Shop::open().await;
    shop.prints(&["transfer", "ada", "bob", "1"], 0);
    let said = shop.prints(&["sagas", "pause", "transfer", "--reason", "a closer look"], 0);
    assert!(said.contains("transfer is paused") && said.contains("sagas resume transfer"), "{said}");

    let waiting = Running(shop.command(&["transfer", "ada", "bob", "2"]).spawn().unwrap());
    let pool = shop.database.pool().await;
    let asked = "select count(*) from annals.events where event_type = 'TransferRequested'";
    let deadline = Instant::now() + Duration::from_secs(60);
    while sqlx::query_scalar::<_, i64>(asked).fetch_one(&pool).await.unwrap() < 2 {
        assert!(Instant::now() < deadline, "the transfer is not asked for");
    }
    assert_eq!(shop.objects(&["sagas", "list", "transfer", "--state", "completed", "--json"], 0).len(), 1);
    let said = shop.prints(&["sagas", "summary"], 0);
    assert!(
        said.contains("transfer is paused: a closer look, by ") && said.contains("sagas resume transfer"),
        "{said}"
    );
    shop.prints(&["sagas", "resume", "transfer"], 0);

    shop.wait_for(&["sagas", "summary", "--json"], "it is completed", |all| all["transfer"]["completed"] == 2);
    drop(waiting);
}

#[tokio::test]
async fn what_is_wrong_is_told_in_a_line_and_changes_nothing() {
    let shop = Shop::open().await;
    shop.prints(&["transfer", "ada", "bob", "1"], 0);
    let id = shop.object(&["sagas", "list", "--json"], 0)["id"].as_str().unwrap().to_owned();
    let unknown = "there is no saga \"nope\": there are fulfilment, transfer";
    let why = "say why with --reason TEXT";

    for (arguments, expected) in [
        (vec!["sagas", "list", "nope"], unknown),
        (vec!["sagas", "pause", "nope"], unknown),
        (vec!["sagas", "resume", "nope"], unknown),
        (vec!["sagas", "show", "nope", "1"], unknown),
        (
            vec!["sagas", "show", "transfer", "1"],
            "-- dead-letters list transfer` the events from which none could begin",
        ),
        (vec!["sagas", "retry", "transfer", &id], why),
        (vec!["sagas", "skip", "transfer", &id, "debit"], why),
        (vec!["sagas", "resolve", "transfer", &id, "--as", "completed", "--reason", " "], why),
        (vec!["sagas", "cancel", "transfer", &id], why),
        (vec!["sagas", "retry", "transfer", &id, "--reason", "x"], "nothing was done: transfer"),
        (vec!["sagas", "cancel", "transfer", &id, "--reason", "x"], "nothing was done: transfer"),
        (vec!["sagas", "retry", "transfer", "1", "--reason", "x"], "there is no instance 1 of saga transfer"),
    ] {
        let refused = shop.refused(&arguments);
        assert!(refused.contains(expected), "{arguments:?}: {refused}");
    }
    for arguments in [
        &["sagas", "list", "--state", "lost"][..],
        &["sagas", "list", "--older-than", "soon"],
        &["sagas", "list", "--correlation", "x"],
        &["sagas", "resolve", "transfer", "1", "--reason", "x"],
    ] {
        assert_eq!(shop.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(shop.objects(&["sagas", "show", "transfer", &id, "--json"], 0).len(), 6);
}

#[tokio::test]
async fn a_gateway_that_is_down_is_left_alone_and_operators_see_and_say_so() {
    let shop = Shop::open().await;
    assert_eq!(shop.prints(&["breakers", "list"], 0), "no process that is alive calls anybody\n");
    let refused = shop.refused(&[&["breakers", "open", "gateway"][..], &BECAUSE].concat());
    assert!(refused.contains("no process that is alive calls \"gateway\""), "{refused}");
    assert!(shop.refused(&["breakers", "close", "gateway"]).contains("say why with --reason TEXT"));

    let fulfilling = Running(shop.command(&["fulfil", "--count", "20", "--outage", "--json"]).spawn().unwrap());
    let list = ["breakers", "list", "--json"];
    let is_open = |breaker: &Value| breaker["target"] == "gateway" && breaker["state"] == "open";
    let open = shop.wait_for(&list, "the breaker opens", is_open);
    assert_eq!(open["last_error"], "out of service");
    let table = shop.prints(&["breakers", "list"], 0);
    assert!(table.contains("gateway") && table.contains("out of service"), "{table}");
    let said = shop.prints(&[&["breakers", "open", "gateway"][..], &BECAUSE].concat(), 0);
    assert!(said.contains("nobody calls gateway any more"), "{said}");
    let held = shop.wait_for(&list, "it is held open", |breaker| breaker["state"] == "held open");
    assert_eq!((&held["held_by"], &held["reason"]), (&"ada".into(), &"a test".into()));

    let said = shop.prints(&[&["breakers", "close", "gateway"][..], &BECAUSE].concat(), 0);

    assert_eq!(said, "gateway is called again\n");
    shop.wait_for(&list, "it is held no longer", |breaker| breaker["state"] != "held open");
    assert_eq!(shop.object(&["sagas", "summary", "--json"], 0)["fulfilment"]["running"], 20);
    fulfilling.kill();
}

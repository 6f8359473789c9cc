//! Money between two accounts.

use super::*;

#[tokio::test]
async fn a_transfer_whose_process_dies_half_way_is_finished_by_the_next() {
    let shop = Shop::open().await;
    let said = shop.prints(&["transfer", "ada", "bob", "2500"], 0);
    assert!(said.contains("ada has an account now, with $1,000.00"), "{said}");
    assert!(said.contains("$975.00") && said.contains("$1,025.00"), "{said}");

    let crashed = shop.run(&["transfer", "ada", "bob", "100", "--crash"]);
    assert_eq!(crashed.status.code(), None, "{}", text(&crashed.stderr));
    assert!(text(&crashed.stderr).contains("the next one finishes it"), "{}", text(&crashed.stderr));
    let half_way = shop.object(&["sagas", "list", "transfer", "--state", "running", "--json"], 0);
    assert_eq!(half_way["step"], "credit");

    let said = shop.prints(&["transfer", "bob", "ada", "1"], 0);

    assert!(said.contains("A transfer was begun before, and is finished first:"), "{said}");
    assert!(said.contains("$974.01") && said.contains("$1,025.99"), "{said}");
    assert_eq!(shop.prints(&["transfer"], 0), "");
}

#[tokio::test]
async fn a_transfer_that_is_not_possible_says_why_and_moves_nothing() {
    let shop = Shop::open().await;

    let said = shop.prints(&["transfer", "ada", "bob", "100001"], 1);
    assert!(said.contains("100001 cents are wanted, and 100000 are on the account"), "{said}");
    assert!(said.contains("compensated") && said.matches("$1,000.00").count() == 4, "{said}");
    let refused = shop.refused(&["transfer", "ada", "ada", "1"]);
    assert!(refused.contains("nothing is moved: both accounts are \"ada\""), "{refused}");
    for arguments in [&["transfer", "ada"][..], &["transfer", "ada", "bob"], &["transfer", "ada", "bob", "0"]] {
        assert_eq!(shop.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

//! One test per rule of the engine specification, section 2.3.

use serde_json::{Value, json};

use super::*;

const TASK: ReduceContext<'static> = ReduceContext { task_id: "task", index: 3 };

fn reduce(reducer: &dyn Reduce, current: Value, write: Value) -> Result<Change, EngineError> {
    reducer.reduce(Some(&Json::from(current)), &Json::from(write), TASK)
}

fn human(id: &str, content: &str) -> Value {
    json!({"content": content, "additional_kwargs": {}, "response_metadata": {}, "type": "human", "name": null, "id": id})
}

fn remove(id: &str) -> Value {
    json!({"type": "remove", "id": id, "content": ""})
}

/// Where the unchanged part ends, and the contents of what follows.
fn merged(current: Value, write: Value) -> (usize, Vec<String>) {
    let len = current.as_array().map_or(0, Vec::len);
    let (from, tail) = match reduce(&messages(), current, write).expect("reduces") {
        Change::Append(items) => (len, items),
        Change::Edit { from, tail } => (from, tail),
        Change::Replace(value) => panic!("imprecise: {value}"),
    };
    (from, tail.iter().map(|item| item.value()["content"].as_str().expect("text").to_owned()).collect())
}

fn two() -> Value {
    json!([human("1", "one"), human("2", "two")])
}

#[test]
fn lists_are_concatenated() {
    let Ok(Change::Append(items)) = reduce(&append(), json!([1]), json!([2, [3]])) else { panic!("append") };
    assert_eq!(items, [Json::from(json!(2)), Json::from(json!([3]))]);
    assert_eq!(append().initial(), Some(Json::from(json!([]))));
}

#[test]
fn only_lists_are_concatenated() {
    for (write, name) in [(json!("x"), "str"), (json!(1), "int"), (json!(null), "NoneType"), (json!({}), "dict")] {
        let error = reduce(&append(), json!([]), write).expect_err("is refused");
        assert_eq!(error.class, "TypeError");
        assert_eq!(error.message, format!("can only concatenate list (not \"{name}\") to list"));
    }
}

#[test]
fn sums_are_exact_for_integers_of_any_length() {
    for (left, right, expected) in [
        ("1", "2", "3"),
        ("1", "2.5", "3.5"),
        ("true", "1", "2"),
        ("9223372036854775807", "1", "9223372036854775808"),
        ("170141183460469231731687303715884105727", "1", "170141183460469231731687303715884105728"),
        ("-170141183460469231731687303715884105729", "170141183460469231731687303715884105728", "-1"),
        ("-999999999999999999999999999999999999999999", "-1", "-1000000000000000000000000000000000000000000"),
        ("1000000000000000000000000000000000000000000", "-1000000000000000000000000000000000000000000", "0"),
    ] {
        let (a, b) = (Json::parse(left).expect("number"), Json::parse(right).expect("number"));
        match add().reduce(Some(&a), &b, TASK) {
            Ok(Change::Replace(total)) => assert_eq!(total.text(), expected),
            other => panic!("{left} + {right}: {other:?}"),
        }
    }
}

#[test]
fn only_numbers_are_added() {
    let error = reduce(&add(), json!(0), json!("x")).expect_err("is refused");
    assert_eq!(error.repr(), "TypeError(\"unsupported operand type(s) for +: 'int' and 'str'\")");
    assert_eq!(reduce(&add(), json!(1e308), json!(1e308)).expect_err("is refused").class, "OverflowError");
}

#[test]
fn a_new_message_is_appended() {
    assert_eq!(merged(two(), json!([human("3", "three")])), (2, vec!["three".to_owned()]));
    assert_eq!(merged(json!([]), json!("hi")), (0, vec!["hi".to_owned()]));
}

#[test]
fn a_known_id_replaces_in_place() {
    assert_eq!(merged(two(), json!([human("1", "new")])), (0, vec!["new".to_owned(), "two".to_owned()]));
    assert_eq!(merged(two(), json!([human("2", "new"), human("3", "x")])), (1, vec!["new".to_owned(), "x".to_owned()]));
}

#[test]
fn a_remove_message_removes() {
    assert_eq!(merged(two(), json!([remove("1")])), (0, vec!["two".to_owned()]));
    assert_eq!(merged(two(), json!([remove("2")])), (1, vec![]));
}

#[test]
fn an_unknown_id_cannot_be_removed() {
    let error = reduce(&messages(), two(), json!([remove("9")])).expect_err("is refused");
    assert_eq!(error.class, "ValueError");
    assert_eq!(error.message, "Attempting to delete a message with an ID that doesn't exist ('9')");
}

#[test]
fn removed_and_added_again_keeps_its_place() {
    let write = json!([remove("1"), human("1", "again")]);
    assert_eq!(merged(two(), write), (0, vec!["again".to_owned(), "two".to_owned()]));
}

#[test]
fn added_and_removed_is_absent() {
    assert_eq!(merged(two(), json!([human("3", "three"), remove("3")])), (2, vec![]));
}

#[test]
fn a_repeated_id_in_the_write_collapses() {
    assert_eq!(merged(json!([]), json!([human("3", "a"), human("3", "b")])), (0, vec!["b".to_owned()]));
}

#[test]
fn of_a_repeated_id_in_the_list_the_last_is_replaced() {
    let current = json!([human("1", "a"), human("1", "b")]);
    assert_eq!(merged(current, json!([human("1", "c")])), (1, vec!["c".to_owned()]));
}

#[test]
fn remove_all_keeps_what_follows_the_last_marker() {
    let write = json!([human("x", "x"), remove(REMOVE_ALL), human("y", "y"), remove(REMOVE_ALL), human("b", "b")]);
    assert_eq!(merged(two(), write), (0, vec!["b".to_owned()]));
    assert_eq!(merged(two(), json!([remove(REMOVE_ALL)])), (0, vec![]));
}

#[test]
fn a_removal_after_remove_all_sees_only_what_follows_the_marker() {
    let write = json!([remove(REMOVE_ALL), human("b", "b"), remove("b")]);
    assert_eq!(merged(two(), write), (0, vec![]));
    assert!(reduce(&messages(), two(), json!([remove(REMOVE_ALL), remove("1")])).is_err());
}

#[test]
fn null_is_not_a_message_list() {
    let error = reduce(&messages(), two(), json!(null)).expect_err("is refused");
    assert!(error.message.starts_with("Must specify non-null arguments"));
}

#[test]
fn missing_ids_are_derived_from_task_write_and_position() {
    let ids = |context| match messages().reduce(None, &Json::from(json!(["a", "b"])), context) {
        Ok(Change::Append(items)) => {
            items.iter().filter_map(|item| message::message_id(item).map(str::to_owned)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let first = ids(TASK);
    assert_eq!(first, ids(TASK));
    assert_ne!(first[0], first[1]);
    assert_ne!(first, ids(ReduceContext { task_id: "task", index: 4 }));
    assert!(first.iter().all(|id| uuid::Uuid::parse_str(id).is_ok()));
}

#[test]
fn an_overwritten_list_is_brought_to_the_complete_form() {
    let (from, contents) = merged(json!([{"role": "user", "content": "raw"}]), json!(["next"]));
    assert_eq!((from, contents), (0, vec!["raw".to_owned(), "next".to_owned()]));
}

#[test]
fn an_authors_function_replaces() {
    let longest = combine(|a: String, b: String| if b.len() > a.len() { b } else { a });
    assert_eq!(longest.initial(), None);
    let Ok(Change::Replace(value)) = reduce(&longest, json!("long"), json!("x")) else { panic!("replace") };
    assert_eq!(value, Json::from("long"));
    assert_eq!(reduce(&longest, json!("long"), json!(1)).expect_err("is refused").class, "TypeError");

    let product = fold(1, |a: i64, b: i64| a * b);
    assert_eq!(product.initial(), Some(Json::from(1)));

    let last = |_: Json, new: Json| new;
    let Ok(Change::Replace(value)) = reduce(&last, json!(1), json!(2)) else { panic!("replace") };
    assert_eq!(value, Json::from(2));
}

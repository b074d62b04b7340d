use proptest::prelude::*;

use super::*;

fn user(number: u64) -> UserId {
    UserId::new(format!("u_{number}")).expect("valid id")
}

fn sketch_of(numbers: impl IntoIterator<Item = u64>) -> UserSketch {
    let mut sketch = UserSketch::default();
    numbers.into_iter().for_each(|number| sketch.insert(&user(number)));
    sketch
}

fn merged(parts: &[&UserSketch]) -> UserSketch {
    let mut whole = UserSketch::default();
    parts.iter().for_each(|part| whole.merge(part));
    whole
}

#[test]
fn counts_are_exact_up_to_the_limit_and_repeats_count_once() {
    for users in [0, 1, 2, 100, EXACT_USERS_MAX as u64] {
        let sketch = sketch_of((0..users).chain(0..users));
        assert!(sketch.is_exact());
        assert_eq!(sketch.count(), users);
    }
    assert!(!sketch_of(0..=EXACT_USERS_MAX as u64).is_exact());
}

#[test]
fn an_empty_user_is_no_user() {
    let mut sketch = UserSketch::default();
    sketch.insert(&UserId::default());
    assert!(sketch.is_empty());
    assert_eq!(sketch.count(), 0);
}

#[test]
fn estimates_stay_within_four_standard_errors() {
    for users in [129u64, 200, 500, 1_000, 5_000, 10_000, 12_000, 20_000, 50_000, 100_000, 400_000] {
        let error = sketch_of(0..users).count().abs_diff(users) as f64 / users as f64;
        assert!(error < 4.0 * 1.04 / 64.0, "{users} users are off by {error}");
    }
}

#[test]
fn the_estimator_has_no_bias_worth_naming() {
    for users in [300u64, 3_000, 11_000, 30_000] {
        let samples = 40;
        let sum: f64 = (0..samples)
            .map(|sample| sketch_of((0..users).map(|number| sample * 10_000_000 + number)).count() as f64)
            .sum();
        let mean_error = sum / samples as f64 / users as f64 - 1.0;
        // The mean of 40 has a standard error of 0.26 %.
        assert!(mean_error.abs() < 0.011, "{users} users are off by {mean_error} on average");
    }
}

#[test]
fn the_hash_and_the_encoding_are_those_of_stored_sketches() {
    let sketch = sketch_of([7]);
    let mut expected = vec![0, 1];
    expected.extend(xxh3_64(b"u_7").to_le_bytes());
    assert_eq!(sketch.to_bytes(), expected);
    // Golden: a change here makes stored sketches unmergeable with new ones.
    assert_eq!(expected[2..], GOLDEN_HASH_OF_U_7);
    let digest = twice_log::event::Sha256Hex::of(&sketch_of(0..10_000).to_bytes());
    assert_eq!(digest.prefix(), GOLDEN_DENSE);
}

const GOLDEN_HASH_OF_U_7: [u8; 8] = [82, 91, 38, 219, 248, 182, 211, 100];
const GOLDEN_DENSE: &str = "a149c115";

#[test]
fn damaged_bytes_are_refused() {
    let exact = sketch_of(0..5).to_bytes();
    let dense = sketch_of(0..1_000).to_bytes();
    assert!(UserSketch::from_bytes(&exact[..exact.len() - 1]).is_err());
    assert!(UserSketch::from_bytes(&dense[..dense.len() - 1]).is_err());
    assert!(UserSketch::from_bytes(&[exact.clone(), vec![0]].concat()).is_err());
    assert!(UserSketch::from_bytes(&[]).is_err());
    assert!(UserSketch::from_bytes(&[9, 0]).is_err());
    let mut unordered = exact.clone();
    unordered[2..].rotate_left(8);
    assert!(UserSketch::from_bytes(&unordered).is_err());
    let mut out_of_range = dense.clone();
    out_of_range[1] |= 0x3f;
    assert!(UserSketch::from_bytes(&out_of_range).is_err());
}

fn numbers() -> impl Strategy<Value = Vec<u64>> {
    // Small sets that overlap, and sets on both sides of the exact limit.
    prop_oneof![
        proptest::collection::vec(0u64..200, 0..100),
        proptest::collection::vec(0u64..400, 100..300),
        proptest::collection::vec(0u64..100_000, 0..1_000),
    ]
}

proptest! {
    #[test]
    fn merging_is_commutative_associative_and_idempotent(a in numbers(), b in numbers(), c in numbers()) {
        let [left, middle, right] = [a.clone(), b.clone(), c.clone()].map(sketch_of);
        let all = sketch_of(a.into_iter().chain(b).chain(c));
        prop_assert_eq!(&merged(&[&left, &middle, &right]), &all);
        prop_assert_eq!(&merged(&[&right, &left, &middle]), &all);
        prop_assert_eq!(&merged(&[&left, &merged(&[&middle, &right])]), &all);
        prop_assert_eq!(&merged(&[&all, &all, &left]), &all);
    }

    #[test]
    fn bytes_depend_on_the_set_alone_and_read_back(mut a in numbers()) {
        let sketch = sketch_of(a.iter().copied());
        a.reverse();
        let bytes = sketch.to_bytes();
        prop_assert_eq!(&bytes, &sketch_of(a).to_bytes());
        prop_assert_eq!(bytes.len(), sketch.encoded_len());
        prop_assert_eq!(&UserSketch::from_bytes(&bytes).expect("just written"), &sketch);
        let json = serde_json::to_string(&sketch).expect("JSON");
        prop_assert_eq!(&serde_json::from_str::<UserSketch>(&json).expect("just written"), &sketch);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4_000), tag in 0u8..3) {
        let _ = UserSketch::from_bytes(&bytes);
        let tagged = [vec![tag], bytes].concat();
        if let Ok(sketch) = UserSketch::from_bytes(&tagged) {
            prop_assert_eq!(sketch.to_bytes(), tagged);
            let _ = sketch.count();
        }
    }
}

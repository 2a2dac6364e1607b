//! The benchmark's arithmetic: what `cargo bench --bench beside` prints follows from what it measured. That the rest of it compiles
//! is checked by the lints (`--all-targets`); that it runs, by whoever runs it.
#![allow(clippy::float_cmp, reason = "small integers and halves are exact")]

#[path = "../../benches/beside/table.rs"]
mod table;

use table::{Bound, Heading, Measure, Results, Sample, Spread, Target, number, quantile, ratio};

fn results(values: &[(&str, Measure, &[f64])]) -> Results {
    let mut samples = Vec::new();
    for (subject, measure, rounds) in values {
        for (round, value) in rounds.iter().enumerate() {
            samples.push(Sample { work: "hot", subject: (*subject).to_owned(), round, measure: *measure, value: *value });
        }
    }
    Results { samples }
}

#[test]
fn a_quantile_is_the_nearest_rank_and_never_outside() {
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!([0.0, 0.5, 0.99, 0.999, 1.0].map(|share| quantile(&hundred, share).unwrap()), [1.0, 50.0, 99.0, 100.0, 100.0]);
    assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
    assert_eq!(quantile(&[], 0.5), None);
}

#[test]
fn a_spread_knows_its_middle_whatever_the_order() {
    assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, greatest: 3.0 }));
    assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    assert_eq!(Spread::of(vec![]), None);
}

#[test]
fn a_ratio_to_nothing_says_nothing() {
    assert_eq!(ratio(1.0, 4.0), Some(0.25));
    assert_eq!(ratio(1.0, 0.0), None);
}

#[test]
fn a_target_is_judged_by_medians_alone_or_beside_another() {
    let seen = results(&[("millpond", Measure::Throughput, &[9.0, 3.0, 4.0]), ("nginx", Measure::Throughput, &[2.0])]);
    let target = |bound, beside| Target { measure: Measure::Throughput, beside, bound };
    assert_eq!(seen.judge("hot", &target(Bound::AtLeast(2.0), Some("nginx"))), Some((2.0, true)));
    assert_eq!(seen.judge("hot", &target(Bound::AtLeast(2.1), Some("nginx"))), Some((2.0, false)));
    assert_eq!(seen.judge("hot", &target(Bound::AtMost(4.0), None)), Some((4.0, true)));
    assert_eq!(seen.judge("hot", &target(Bound::AtMost(3.9), None)), Some((4.0, false)));
    assert_eq!(seen.judge("hot", &target(Bound::AtMost(3.9), Some("docker-registry"))), None);
    assert_eq!(seen.judge("cold", &target(Bound::AtMost(3.9), None)), None);
}

#[test]
fn the_table_has_a_row_a_measure_and_says_what_was_missed_and_what_was_not_measured() {
    let seen = results(&[
        ("millpond", Measure::Throughput, &[2.0, 4.0, 3.0]),
        ("nginx", Measure::Throughput, &[2.0]),
        ("millpond", Measure::Failed, &[0.0]),
    ]);
    let target = |measure, bound, beside| Target { measure, beside, bound };
    let targets = vec![
        target(Measure::Throughput, Bound::AtLeast(2.0), Some("nginx")),
        target(Measure::Throughput, Bound::AtLeast(1.0), Some("limit")),
        target(Measure::Failed, Bound::AtMost(0.0), None),
    ];
    let heading = Heading { work: "hot", title: "held blob".to_owned(), targets };
    let text = seen.markdown(&[heading], &["millpond".to_owned(), "nginx".to_owned()]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "| work | measure | millpond | nginx | / nginx | target |");
    assert_eq!(lines[1].matches("---").count(), 6);
    assert_eq!(
        lines[2],
        "| held blob | throughput, GiB/s | 3.00 (2.00-4.00) | 2.00 | 1.50 | >= 2 of nginx: **missed: 1.50**; >= 1 of limit: not measured |"
    );
    assert_eq!(lines[3], "|  | failed requests | 0 |  |  | <= 0: holds |");
    assert_eq!(lines.len(), 4);
    assert_eq!(seen.tsv().lines().nth(2), Some("hot\tmillpond\t1\tthroughput, GiB/s\t4"));
}

#[test]
fn a_number_has_three_digits_that_mean_something() {
    assert_eq!([0.0, 0.01234, 0.5, 3.21987, 42.42, 1234.5].map(number), ["0", "0.0123", "0.500", "3.22", "42.4", "1234"]);
}

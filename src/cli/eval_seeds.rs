//! Results combined over seeds.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::eval::mean_and_error;

/// Refuses values of `option` that repeat.
pub(super) fn distinct<T: PartialEq + std::fmt::Display>(option: &str, values: &[T]) -> Result<()> {
    let repeated = (1..values.len()).find(|&place| values[..place].contains(&values[place]));
    match repeated {
        Some(place) => Err(Error::config(option, format!("{} twice", values[place]), "give each value once")),
        None => Ok(()),
    }
}

/// The mean of each metric over the seeds of a model with the same sampling settings, and its standard error; None for a single
/// seed.
pub(super) fn over_seeds(results: &[Value]) -> Option<Vec<Value>> {
    let mut groups: Vec<(&Value, Vec<&Value>)> = Vec::new();
    for result in results {
        match groups.iter_mut().find(|(name, _)| **name == result["group"]) {
            Some((_, members)) => members.push(result),
            None => groups.push((&result["group"], vec![result])),
        }
    }
    // Only different seeds of one model are independent of each other.
    groups.retain(|(_, members)| {
        let is_new = |place: usize| members[..place].iter().all(|other| other["seed"] != members[place]["seed"]);
        members.len() > 1 && (0..members.len()).all(is_new)
    });
    if groups.is_empty() {
        return None;
    }
    Some(groups.into_iter().map(|(name, members)| together(name, &members)).collect())
}

fn together(name: &Value, members: &[&Value]) -> Value {
    let name = format!("{}, {} seeds", name.as_str().unwrap_or_default(), members.len());
    let metrics: Vec<Value> = (members[0]["metrics"].as_array().into_iter().flatten().enumerate())
        .map(|(place, metric)| {
            let values: Vec<f64> =
                members.iter().filter_map(|member| member["metrics"][place]["value"].as_f64()).collect();
            let (mean, error) = mean_and_error(&values);
            json!({
                "name": metric["name"], "value": mean, "standard_error": error.is_finite().then_some(error),
                "floor": metric["floor"],
            })
        })
        .collect();
    let seconds: Vec<f64> = members.iter().filter_map(|member| member["seconds_per_image"].as_f64()).collect();
    let seeds: Vec<&Value> = members.iter().map(|member| &member["seed"]).collect();
    json!({
        "name": name, "step": members[0]["step"], "num_samples": members[0]["num_samples"], "seeds": seeds,
        "metrics": metrics, "checkpoint": members[0]["checkpoint"], "sampling": members[0]["sampling"],
        "guidance": members[0]["guidance"], "evaluations_per_image": members[0]["evaluations_per_image"],
        "seconds_per_image": (!seconds.is_empty()).then(|| mean_and_error(&seconds).0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_one_model_come_together() {
        let result = |group: &str, seed: u64, value: f64| {
            let metrics = json!([{ "name": "FID", "value": value }]);
            json!({ "group": group, "seed": seed, "num_samples": 5, "metrics": metrics })
        };
        let all = [result("a", 0, 1.0), result("a", 1, 2.0), result("b", 0, 5.0), result("a", 2, 3.0)];
        let found = over_seeds(&all).unwrap();
        assert_eq!((found.len(), found[0]["name"].as_str()), (1, Some("a, 3 seeds")));
        assert_eq!(found[0]["metrics"][0]["value"], 2.0);
        assert_eq!(found[0]["metrics"][0]["standard_error"], (1.0f64 / 3.0).sqrt());
        assert_eq!(over_seeds(&all[..1]), None);
        // The same seed twice is not two.
        assert_eq!(over_seeds(&[result("a", 0, 1.0), result("a", 0, 1.0)]), None);
    }

    #[test]
    fn repeated_values_are_refused() {
        assert!(distinct("--steps", &[2, 3, 5]).is_ok() && distinct::<u64>("--seeds", &[]).is_ok());
        let message = distinct("--steps", &[2, 3, 3]).unwrap_err().to_string();
        assert!(message.contains("--steps: 3 twice"), "{message}");
    }
}

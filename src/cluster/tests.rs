//! Ranks as threads of one process, which meet over the loopback.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::error::Error;

/// A free port, below those that the system gives to connections: one of these might be taken before a rank listens there.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = || 20_000 + ((std::process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000) as u16;
    std::iter::repeat_with(port).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

fn placed(rank: usize, ranks: usize, port: u16) -> Placement {
    Placement {
        launcher: "test",
        rank,
        ranks,
        local_rank: rank,
        local_ranks: Some(ranks),
        leader: ("127.0.0.1".into(), port),
        job: "tests".into(),
        starts: 1,
    }
}

const SOON: Limits = Limits {
    rendezvous: Duration::from_secs(10),
    silence: Duration::from_secs(10),
    standstill: Duration::from_secs(25),
    grace: None,
};
const BRIEF: Limits = Limits { rendezvous: Duration::from_secs(2), ..SOON };

type Met = Result<Arc<dyn Collective>>;

fn meet(placements: Vec<Placement>, limits: Limits) -> Vec<Met> {
    let one = |placement: Placement| thread::spawn(move || join(&placement, None, limits, &mut || Ok(())));
    let all: Vec<_> = placements.into_iter().map(one).collect();
    all.into_iter().map(|rank| rank.join().unwrap()).collect()
}

/// The results of `f` on each of `ranks` ranks.
fn on_all<R: Send + 'static>(ranks: usize, f: impl Fn(&dyn Collective) -> R + Send + Sync + Copy + 'static) -> Vec<R> {
    let port = free_port();
    let one = |rank| {
        thread::spawn(move || {
            let team = join(&placed(rank, ranks, port), None, SOON, &mut || Ok(())).unwrap();
            let result = f(team.as_ref());
            team.leave(None);
            result
        })
    };
    let all: Vec<_> = (0..ranks).map(one).collect();
    all.into_iter().map(|rank| rank.join().unwrap()).collect()
}

#[test]
fn sums_gathers_and_broadcasts_are_the_same_on_all_ranks() {
    for ranks in [2, 3, 4] {
        let found = on_all(ranks, |team| {
            let rank = team.rank();
            let mut sums = Vec::new();
            for len in [0, 1, 15, 16, 17, 1000, 300_000] {
                let mut values: Vec<f32> = (0..len).map(|i| ((i * 7 + rank * 13) % 101) as f32 / 7.0).collect();
                team.all_reduce(&mut values).unwrap();
                sums.push(values);
            }
            let mut all = vec![0; 3 * team.ranks()];
            team.gather(&[rank as u8; 3], &mut all).unwrap();
            team.barrier().unwrap();
            let mut told = if rank == 1 { *b"from one" } else { [0; 8] };
            team.broadcast(&mut told, 1).unwrap();
            let heard = match rank {
                0 => team.tell(b"go on").map(|()| b"go on".to_vec()),
                _ => team.listen(),
            };
            (sums, all, told, heard.unwrap())
        });
        for (sums, all, told, heard) in &found {
            assert_eq!((sums, all), (&found[0].0, &found[0].1));
            assert!(*told == *b"from one" && heard == b"go on");
        }
        assert_eq!(found[0].1, (0..ranks as u8).flat_map(|rank| [rank; 3]).collect::<Vec<_>>());
        let of = |rank: usize| ((3 * 7 + rank * 13) % 101) as f32 / 7.0;
        let sum = match ranks {
            2 => of(0) + of(1),
            3 => (of(0) + of(1)) + of(2),
            _ => (of(0) + of(1)) + (of(2) + of(3)),
        };
        assert_eq!(found[0].0[5][3].to_bits(), sum.to_bits());
    }
}

fn faults(met: Vec<Met>) -> Vec<String> {
    met.into_iter().map(|met| met.unwrap_err().to_string()).collect()
}

#[test]
fn ranks_that_do_not_fit_are_told_on_all_ranks_in_time() {
    let began = Instant::now();
    let port = free_port();
    let missing = faults(meet(vec![placed(0, 3, port), placed(1, 3, port)], BRIEF));
    assert!(
        missing.iter().all(|text| text.contains("rank 2 of 3 did not connect") && text.contains("waited 2 s")),
        "{missing:?}"
    );
    let port = free_port();
    let twice = faults(meet(vec![placed(0, 3, port), placed(1, 3, port), placed(1, 3, port)], BRIEF));
    assert!(twice.iter().all(|text| text.contains("claim to be rank 1")), "{twice:?}");
    let port = free_port();
    let sizes = faults(meet(vec![placed(0, 2, port), placed(2, 3, port)], BRIEF));
    assert!(
        sizes.iter().all(|text| text.contains("rank 2 belongs to a job of 3 ranks, rank 0 to one of 2")),
        "{sizes:?}"
    );
    let alone = faults(meet(vec![placed(1, 2, free_port())], BRIEF)).remove(0);
    assert!(alone.contains("rank 1 found no rank 0 at 127.0.0.1") && alone.contains("within 2 s"), "{alone}");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let both = faults(meet(vec![placed(0, 2, port)], BRIEF)).remove(0);
    assert!(both.contains("rank 0 cannot listen on 127.0.0.1") && both.contains("ENGINE_PORT"), "{both}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn whoever_is_of_another_job_or_none_is_passed_over() {
    let port = free_port();
    let other = Placement { job: "another".into(), ..placed(1, 2, port) };
    let stray = thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                use std::io::{Read, Write};
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
                // It is closed without an answer.
                return stream.read(&mut [0; 16]).unwrap_or(0);
            }
        }
        0
    });
    let late = thread::spawn(move || {
        // The one that does not belong connects first.
        let refused = join(&other, None, SOON, &mut || Ok(())).unwrap_err().to_string();
        (refused, join(&placed(1, 2, port), None, SOON, &mut || Ok(())))
    });
    let leader = join(&placed(0, 2, port), None, SOON, &mut || Ok(())).unwrap();
    let (refused, follower) = late.join().unwrap();
    assert!(refused.contains("of another job"), "{refused}");
    let follower = follower.unwrap();
    assert_eq!(stray.join().unwrap(), 0);
    let extra = join(&placed(1, 2, port), None, BRIEF, &mut || Ok(())).unwrap_err().to_string();
    assert!(extra.contains("one too many"), "{extra}");
    leader.tell(b"still here").unwrap();
    assert_eq!(follower.listen().unwrap(), b"still here");
    follower.ask_to_stop();
    let until = Instant::now() + Duration::from_secs(5);
    while !leader.stop().load(std::sync::atomic::Ordering::Relaxed) && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(leader.stop().load(std::sync::atomic::Ordering::Relaxed));
    leader.leave(None);
    follower.leave(None);
}

#[test]
fn the_error_of_one_rank_ends_all_others_with_its_words() {
    let found = on_all(3, |team| match team.barrier().map(|()| team.rank()).unwrap() {
        2 => {
            team.leave(Some("the disk is full"));
            String::new()
        }
        0 => team.all_reduce(&mut [1.0; 64]).unwrap_err().to_string(),
        _ => team.listen().unwrap_err().to_string(),
    });
    for text in &found[..2] {
        assert!(text.contains("rank 2 (process") && text.contains("failed: the disk is full"), "{text}");
    }
}

#[test]
fn ranks_out_of_step_are_told_instead_of_waiting() {
    let found = on_all(2, |team| match team.rank() {
        0 => team.gather(&[1; 4], &mut [0; 8]),
        _ => team.gather(&[1; 5], &mut [0; 10]),
    });
    assert!(found.iter().all(|result| matches!(result, Err(Error::Cluster { .. }))), "{found:?}");
}

#[test]
fn facts_that_differ_are_named() {
    let found = on_all(3, |team| {
        let (lr, engine) = (["1e-3", "1e-3", "2e-3"][team.rank()], ["a", "a", "a"][team.rank()]);
        let facts = [
            Fact { name: "engine", value: engine.into() },
            Fact { name: "configuration", value: format!("depth: 4\nlearning_rate: {lr}\n") },
        ];
        agree(team, &facts[..1]).unwrap();
        agree(team, &facts).unwrap_err().to_string()
    });
    let expected = "rank 2 has a different configuration than rank 0: `learning_rate: 2e-3` for `learning_rate: 1e-3`";
    assert!(found.iter().all(|text| text.contains(expected)), "{found:?}");
}

/// Three ranks in step, of which `which` hangs in its fifth batch while its control thread is alive.
fn standing_still(which: usize) -> (Vec<String>, Duration) {
    const HASTY: Limits = Limits { standstill: Duration::from_secs(3), ..SOON };
    let (port, began) = (free_port(), Instant::now());
    let one = |rank| {
        thread::spawn(move || {
            let team = join(&placed(rank, 3, port), None, HASTY, &mut || Ok(())).unwrap();
            let failed = (0..100).find_map(|step| {
                team.go_on(Moving::Alone);
                if step == 4 && rank == which {
                    thread::sleep(Duration::from_secs(8));
                }
                team.all_reduce(&mut [1.0; 8]).err()
            });
            team.leave(None);
            failed.map_or(String::new(), |error| error.to_string())
        })
    };
    let all: Vec<_> = (0..3).map(one).collect();
    (all.into_iter().map(|rank| rank.join().unwrap()).collect(), began.elapsed())
}

#[test]
fn a_rank_that_lives_and_stands_still_is_named_on_all() {
    for which in [0, 1] {
        let (found, took) = standing_still(which);
        let named = format!("rank {which} (process ");
        assert!(
            found.iter().all(|text| text.contains(&named) && text.contains("hangs: it is alive, but")),
            "{found:?}"
        );
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}

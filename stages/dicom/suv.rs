//! PET activity → standardised uptake value by body weight (QIBA FDG-PET profile, PS3.3 C.8.9.1): activity × weight ÷ the dose that is left at the time to which
//! the image is corrected. A tag that is missing is an error by its name; nothing is guessed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which uptake value a PET is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Suv {
    /// g/ml by body weight: 1 where the tracer is spread evenly over the body.
    BodyWeight,
}

/// What a PET file says of tracer and patient. Times are seconds since 1970, without time zone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracer {
    /// BQML, CNTS, GML.
    pub units: String,
    pub suv_type: String,
    pub corrected: Vec<String>,
    /// START, ADMIN, NONE.
    pub decay: String,
    pub weight_kg: Option<f64>,
    pub dose_bq: Option<f64>,
    pub half_life_s: Option<f64>,
    /// RadiopharmaceuticalStartDateTime.
    pub injected_s: Option<f64>,
    /// RadiopharmaceuticalStartTime: seconds of a day that is not told.
    pub injected_time_s: Option<f64>,
    pub series_s: Option<f64>,
    pub acquired_s: Option<f64>,
    /// FrameReferenceTime: from the series' reference time to that at which the average rate of the frame was counted.
    pub frame_reference_s: Option<f64>,
    /// ActualFrameDuration.
    pub frame_duration_s: Option<f64>,
    /// (0009,xx0D) of GEMS_PETD_01: when the scan began, whatever became of the series since.
    pub ge_scan_s: Option<f64>,
    /// (7053,1000): counts → SUV.
    pub philips_suv: Option<f64>,
    /// (7053,1009): counts → Bq/ml.
    pub philips_activity: Option<f64>,
}

const DAY_S: f64 = 86400.0;

/// What the files of a volume say together of when their scan began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Began {
    /// The earliest acquisition.
    pub acquired_s: Option<f64>,
    /// The earliest reference time of the series that follows from FrameReferenceTime.
    pub told_s: Option<f64>,
    /// The volume is a later one of several in time: its first acquisition is not that of the series.
    pub is_repeat: bool,
}

impl Began {
    pub fn of(tracers: &[Tracer], is_repeat: bool) -> Began {
        let earliest = |of: &dyn Fn(&Tracer) -> Option<f64>| tracers.iter().filter_map(of).reduce(f64::min);
        Began { acquired_s: earliest(&|t| t.acquired_s), told_s: earliest(&told_s), is_repeat }
    }
}

/// The reference time of the series by one of its frames: FrameReferenceTime runs from there to the moment at which the rate of the decaying tracer was that
/// of the whole frame, `1/λ · ln(λd / (1 − e^(−λd)))` after its beginning (QIBA's vendor-neutral computation). 0 is what those write who do not know.
fn told_s(t: &Tracer) -> Option<f64> {
    let [reference_s, duration_s, half_life_s] = [t.frame_reference_s, t.frame_duration_s, t.half_life_s].map(|v| v.filter(|v| *v > 0.0));
    let lambda = std::f64::consts::LN_2 / half_life_s?;
    let decay = lambda * duration_s?;
    let average_s = (decay / -(-decay).exp_m1()).ln() / lambda;
    Some(t.acquired_s? - reference_s? + average_s)
}

/// What rescaled values are multiplied with to be g/ml.
pub fn factor(t: &Tracer, began: &Began) -> Result<f64, String> {
    let activity = match t.units.as_str() {
        "GML" if matches!(t.suv_type.as_str(), "" | "BW") => return Ok(1.0),
        "GML" => return Err(format!("its values are SUV of the type {}, not by body weight", t.suv_type)),
        "CNTS" => match (t.philips_suv, t.philips_activity) {
            (Some(factor), _) => return Ok(factor),
            (None, Some(activity)) => activity,
            (None, None) => return Err("Units are CNTS and neither (7053,1000) nor (7053,1009) says what a count is".into()),
        },
        "BQML" => 1.0,
        other => return Err(format!("no SUV from Units {other:?}, only from BQML, CNTS of Philips and GML")),
    };
    let positive = |value: Option<f64>, tag: &str| match value {
        Some(v) if v > 0.0 => Ok(v),
        Some(v) => Err(format!("no SUV: {tag} is {v}")),
        None => Err(format!("no SUV: {tag} is missing")),
    };
    let weight_g = positive(t.weight_kg, "PatientWeight (0010,1030)")? * 1000.0;
    let dose_bq = positive(t.dose_bq, "RadionuclideTotalDose (0018,1074)")?;
    if !t.corrected.is_empty() && !t.corrected.iter().any(|c| c == "DECY") {
        return Err(format!("no SUV: CorrectedImage (0028,0051) is {}, without DECY", t.corrected.join("\\")));
    }
    let left_bq = match t.decay.as_str() {
        "ADMIN" => dose_bq,
        "START" => {
            let half_life_s = positive(t.half_life_s, "RadionuclideHalfLife (0018,1075)")?;
            dose_bq * (-waited_s(t, began)? / half_life_s).exp2()
        }
        "" => return Err("no SUV: DecayCorrection (0054,1102) is missing".into()),
        other => return Err(format!("no SUV: DecayCorrection (0054,1102) is {other}, expected START or ADMIN")),
    };
    Ok(activity * weight_g / left_bq)
}

/// The time to which the image is corrected: that of the series, unless the series was made after its first acquisition (reconstructed or sent anew). Then
/// it is what the frames tell of it, else the first acquisition. A later frame of a dynamic series is younger than a series that was made in between: what
/// it tells is asked as well, its duration being how well vendors keep to it.
fn start_s(t: &Tracer, began: &Began) -> Result<f64, String> {
    let is_own = |series: &f64| {
        let not_after = |other: Option<f64>, slack_s: f64| other.is_none_or(|o| *series <= o + slack_s);
        not_after(began.acquired_s, 0.0) && not_after(began.told_s, t.frame_duration_s.unwrap_or(0.0))
    };
    let not_after_scan = |s: &f64| began.acquired_s.is_none_or(|first| *s <= first);
    if let Some(start) = t.series_s.filter(is_own).or(t.ge_scan_s.filter(not_after_scan)).or(began.told_s) {
        return Ok(start);
    }
    match began.acquired_s {
        None => Err("no SUV: SeriesDate and SeriesTime, AcquisitionDate and AcquisitionTime are missing".into()),
        Some(_) if began.is_repeat => {
            Err("no SUV: the series is dated after this frame of it, and without FrameReferenceTime (0054,1300) \
             and ActualFrameDuration (0018,1242) nothing says when it began"
                .into())
        }
        Some(first) => Ok(first),
    }
}

/// Seconds from the injection to the time to which the image is corrected.
fn waited_s(t: &Tracer, began: &Began) -> Result<f64, String> {
    let start_s = start_s(t, began)?;
    let waited_s = match (t.injected_s, t.injected_time_s) {
        (Some(injected), _) => start_s - injected,
        // Without a date it was in the last 24 hours: before midnight where the clock says it is later than the scan.
        (None, Some(time)) => (start_s.rem_euclid(DAY_S) - time).rem_euclid(DAY_S),
        (None, None) => return Err("no SUV: RadiopharmaceuticalStartTime (0018,1072) is missing".into()),
    };
    if !(0.0..=2.0 * DAY_S).contains(&waited_s) {
        return Err(format!("no SUV: the injection lies {waited_s} s before the scan"));
    }
    Ok(waited_s)
}

/// DA `YYYYMMDD` → days since 1970-01-01.
pub fn days_of(date: &str) -> Option<f64> {
    let digits = date.replace('.', "");
    let number = |range: std::ops::Range<usize>| digits.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March end with the day that is sometimes there.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) as f64)
}

/// DT `YYYYMMDDHHMMSS.F` → seconds since 1970. The offset from UTC is left out: all times of one study are told on one clock.
pub fn moment_of(text: &str) -> Option<f64> {
    let clock = text.get(8..).unwrap_or("").split(['+', '-', '&']).next().unwrap_or("");
    let part = |range: std::ops::Range<usize>| clock.get(range).map_or(Some(0.0), |s| s.parse::<f64>().ok());
    let seconds = clock.get(4..).filter(|s| !s.is_empty()).map_or(Some(0.0), |s| s.parse::<f64>().ok())?;
    Some(days_of(text.get(..8)?)? * DAY_S + part(0..2)? * 3600.0 + part(2..4)? * 60.0 + seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// 370 MBq of F-18 at 10:00:00, scan at 11:00:00, 70 kg.
    fn tracer() -> Tracer {
        Tracer {
            units: "BQML".into(),
            corrected: vec!["DECY".into(), "ATTN".into()],
            decay: "START".into(),
            weight_kg: Some(70.0),
            dose_bq: Some(3.7e8),
            half_life_s: Some(6586.2),
            injected_time_s: Some(36000.0),
            series_s: Some(days_of("20240229").unwrap() * DAY_S + 39600.0),
            ..Tracer::default()
        }
    }

    const ALONE: Began = Began { acquired_s: None, told_s: None, is_repeat: false };

    fn near(a: f64, b: f64) {
        assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn activity_is_divided_by_what_is_left_of_the_dose() {
        // 2^(−3600/6586.2) = 0.684632919…: 253,314,180 Bq are left.
        let left: f64 = 3.7e8 * 0.5f64.powf(3600.0 / 6586.2);
        assert!((left - 253_314_180.2).abs() < 1.0, "{left}");
        near(factor(&tracer(), &ALONE).unwrap(), 70_000.0 / left);
        assert!((factor(&tracer(), &ALONE).unwrap() - 2.763366817e-4).abs() < 1e-12);
        let at_injection = Tracer { decay: "ADMIN".into(), half_life_s: None, ..tracer() };
        near(factor(&at_injection, &ALONE).unwrap(), 70_000.0 / 3.7e8);
    }

    #[test]
    fn an_injection_before_midnight_lies_on_the_day_before() {
        let late =
            Tracer { injected_time_s: Some(23.5 * 3600.0), series_s: Some(days_of("20240301").unwrap() * DAY_S + 1800.0), ..tracer() };
        near(factor(&late, &ALONE).unwrap(), factor(&tracer(), &ALONE).unwrap());
        let dated = Tracer { injected_s: moment_of("20240229233000.00"), injected_time_s: None, ..late };
        near(factor(&dated, &ALONE).unwrap(), factor(&tracer(), &ALONE).unwrap());
    }

    #[test]
    fn a_series_made_later_counts_from_its_first_acquisition() {
        let first = tracer().series_s;
        let later = Tracer { series_s: first.map(|s| s + 5000.0), ..tracer() };
        near(factor(&later, &Began { acquired_s: first, ..ALONE }).unwrap(), factor(&tracer(), &ALONE).unwrap());
    }

    /// The fifth frame of a dynamic scan that began at 11:00:00: 300 s from 11:20:00 on. Its average rate was counted 150 − λ·300²/24 = 149.605 s after that.
    fn fifth() -> Tracer {
        let acquired_s = tracer().series_s.map(|s| s + 1200.0);
        Tracer { acquired_s, frame_reference_s: Some(1349.605), frame_duration_s: Some(300.0), ..tracer() }
    }

    fn by(t: &Tracer) -> Result<f64, String> {
        factor(t, &Began::of(std::slice::from_ref(t), true))
    }

    #[test]
    fn every_frame_of_a_dynamic_series_is_corrected_to_the_time_of_the_series() {
        // 70,000 g ÷ 253,314,180 Bq, as for the first frame: an hour after the injection, not 80 minutes.
        assert!((by(&fifth()).unwrap() - 2.763366817e-4).abs() < 1e-12);
        // The series was made anew between the frames, and after all of them.
        for later_s in [1000.0, 90_000.0] {
            let anew = Tracer { series_s: tracer().series_s.map(|s| s + later_s), ..fifth() };
            assert!((by(&anew).unwrap() / 2.763366817e-4 - 1.0).abs() < 1e-6, "{:?}", by(&anew));
        }
        let silent = Tracer { series_s: tracer().series_s.map(|s| s + 90_000.0), frame_reference_s: None, ..fifth() };
        assert!(by(&silent).unwrap_err().contains("FrameReferenceTime (0054,1300)"));
        let ge = Tracer { ge_scan_s: tracer().series_s, ..silent.clone() };
        near(by(&ge).unwrap(), factor(&tracer(), &ALONE).unwrap());
        let at_injection = Tracer { decay: "ADMIN".into(), ..silent };
        near(by(&at_injection).unwrap(), 70_000.0 / 3.7e8);
    }

    #[test]
    fn a_dynamic_scan_over_midnight_keeps_its_hour() {
        // Injected at 23:30, scan from 00:30 on the next day.
        let day = days_of("20240301").unwrap() * DAY_S;
        let t = Tracer { injected_time_s: Some(84_600.0), series_s: Some(day + 1800.0), acquired_s: Some(day + 3000.0), ..fifth() };
        assert!((by(&t).unwrap() - 2.763366817e-4).abs() < 1e-12);
    }

    #[test]
    fn what_is_missing_is_named() {
        let says = |t: Tracer| factor(&t, &ALONE).unwrap_err();
        assert!(says(Tracer { weight_kg: None, ..tracer() }).contains("PatientWeight (0010,1030) is missing"));
        assert!(says(Tracer { weight_kg: Some(0.0), ..tracer() }).contains("PatientWeight (0010,1030) is 0"));
        assert!(says(Tracer { dose_bq: None, ..tracer() }).contains("RadionuclideTotalDose"));
        assert!(says(Tracer { half_life_s: None, ..tracer() }).contains("RadionuclideHalfLife"));
        assert!(says(Tracer { injected_time_s: None, ..tracer() }).contains("RadiopharmaceuticalStartTime"));
        assert!(says(Tracer { series_s: None, ..tracer() }).contains("SeriesDate"));
        assert!(says(Tracer { decay: "NONE".into(), ..tracer() }).contains("is NONE"));
        assert!(says(Tracer { units: "PROPCPS".into(), ..tracer() }).contains("PROPCPS"));
        assert!(says(Tracer { corrected: vec!["ATTN".into()], ..tracer() }).contains("without DECY"));
    }

    #[test]
    fn counts_of_philips_and_grams_carry_their_own_factor() {
        let counts = Tracer { units: "CNTS".into(), philips_suv: Some(0.00025), weight_kg: None, ..tracer() };
        assert_eq!(factor(&counts, &ALONE), Ok(0.00025));
        let activity = Tracer { units: "CNTS".into(), philips_activity: Some(2.0), ..tracer() };
        near(factor(&activity, &ALONE).unwrap(), 2.0 * factor(&tracer(), &ALONE).unwrap());
        assert_eq!(factor(&Tracer { units: "GML".into(), ..Tracer::default() }, &ALONE), Ok(1.0));
        assert!(factor(&Tracer { units: "GML".into(), suv_type: "LBM".into(), ..Tracer::default() }, &ALONE).is_err());
    }

    #[test]
    fn dates_are_days_since_1970() {
        assert_eq!(days_of("19700101"), Some(0.0));
        assert_eq!(days_of("20000301"), Some(11017.0));
        assert_eq!(days_of("20240229"), Some(19782.0));
        assert_eq!(days_of("20241301"), None);
        assert_eq!(moment_of("19700102010203.5+0100"), Some(86400.0 + 3723.5));
    }
}

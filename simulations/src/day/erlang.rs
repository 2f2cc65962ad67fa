//! How long a queue makes wait, by formula: Erlang C and the Allen–Cunneen approximation.
//!
//! The formulas stand beside the simulations as a second opinion: they size the duty roster, and a test
//! holds the discrete-event simulation against them.

/// The probability that a request finds all servers busy, in an M/M/c queue.
///
/// `offered` is in Erlang (arrivals per unit of time × mean service time). 1 when the servers can't cope.
/// Source: Erlang's second formula (1917), computed from Erlang B by its stable recursion.
pub fn probability_of_waiting(servers: u32, offered: f64) -> f64 {
    if f64::from(servers) <= offered {
        return 1.0;
    }
    let mut blocked = 1.0;
    for server in 1..=servers {
        blocked = offered * blocked / (f64::from(server) + offered * blocked);
    }
    let idle_share = 1.0 - offered / f64::from(servers);
    blocked / (idle_share + offered / f64::from(servers) * blocked)
}

/// The mean wait before service in an M/G/c queue, in the unit of `service_mean`; infinite when the servers
/// can't cope.
///
/// `service_cv` is the coefficient of variation of the service time. Source: Allen–Cunneen: Erlang C's mean
/// wait × (1 + cv²) / 2, exact for M/M/c and for M/G/1.
pub fn mean_wait(servers: u32, arrivals_per_time: f64, service_mean: f64, service_cv: f64) -> f64 {
    let offered = arrivals_per_time * service_mean;
    let spare = f64::from(servers) - offered;
    if spare <= 0.0 {
        return f64::INFINITY;
    }
    probability_of_waiting(servers, offered) * service_mean / spare * (1.0 + service_cv * service_cv) / 2.0
}

#[cfg(test)]
mod tests {
    use super::{mean_wait, probability_of_waiting};

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 5e-4 * expected.max(1.0), "{value} is not {expected}");
    }

    #[test]
    fn one_server_waits_as_pollaczek_and_khinchine_say() {
        near(probability_of_waiting(1, 0.7), 0.7);
        // rho × service / (1 - rho) × (1 + cv²) / 2
        near(mean_wait(1, 0.07, 10.0, 0.5), 0.7 * 10.0 / 0.3 * 1.25 / 2.0);
    }

    #[test]
    fn tables_of_erlang_c_are_met() {
        // Two servers: closed form a² / (2 + a) for M/M/2.
        near(probability_of_waiting(2, 1.0), 1.0 / 3.0);
        // Ten servers at 8 Erlang: 0.4092, as tables of call-centre staffing print it.
        near(probability_of_waiting(10, 8.0), 0.4092);
    }

    #[test]
    fn too_few_servers_wait_for_ever() {
        near(probability_of_waiting(3, 3.0), 1.0);
        assert!(mean_wait(3, 0.2, 15.0, 1.0).is_infinite());
    }
}

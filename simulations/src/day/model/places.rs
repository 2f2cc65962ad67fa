//! Where the service is: territories, and the reading centres with their seats.

/// A territory: what one failure of long-distance links cuts off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Territory {
    pub(super) name: &'static str,
    /// Partner hospitals, in a hundred.
    pub(super) hospitals: f64,
}

/// A reading centre.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) name: &'static str,
    /// Index of its territory.
    pub(super) territory: usize,
    pub(super) seats: u32,
    /// Whether nuclear physicians read here.
    pub(super) nuclear: bool,
}

/// Assumption: eight territories, hospitals where the centres are, and a few overseas.
pub(super) const TERRITORIES: [Territory; 8] = [
    Territory { name: "Rhône-Alpes", hospitals: 24.0 },
    Territory { name: "Île-de-France", hospitals: 10.0 },
    Territory { name: "Sud", hospitals: 14.0 },
    Territory { name: "Sud-Ouest", hospitals: 14.0 },
    Territory { name: "Ouest", hospitals: 12.0 },
    Territory { name: "Nord", hospitals: 10.0 },
    Territory { name: "Est", hospitals: 10.0 },
    Territory { name: "Outre-mer", hospitals: 6.0 },
];

/// Sixteen centres of one to seven seats. Their number and range are the service's; which city has how
/// many is an assumption.
pub(super) const PLACES: [Place; 16] = [
    Place { name: "Lyon", territory: 0, seats: 7, nuclear: true },
    Place { name: "Paris", territory: 1, seats: 6, nuclear: true },
    Place { name: "Marseille", territory: 2, seats: 5, nuclear: true },
    Place { name: "Bordeaux", territory: 3, seats: 5, nuclear: false },
    Place { name: "Rennes", territory: 4, seats: 4, nuclear: false },
    Place { name: "Lille", territory: 5, seats: 4, nuclear: false },
    Place { name: "Toulouse", territory: 3, seats: 4, nuclear: false },
    Place { name: "Nantes", territory: 4, seats: 3, nuclear: false },
    Place { name: "Strasbourg", territory: 6, seats: 3, nuclear: false },
    Place { name: "Grenoble", territory: 0, seats: 3, nuclear: false },
    Place { name: "Montpellier", territory: 2, seats: 2, nuclear: false },
    Place { name: "Dijon", territory: 6, seats: 2, nuclear: false },
    Place { name: "Rouen", territory: 5, seats: 2, nuclear: false },
    Place { name: "Clermont-Ferrand", territory: 0, seats: 2, nuclear: false },
    Place { name: "Nice", territory: 2, seats: 1, nuclear: false },
    Place { name: "Saint-Denis", territory: 7, seats: 1, nuclear: false },
];

"""Critical learning periods of deep linear networks (Kleinman, Achille and Soatto 2023)."""

"""How the rank and structure of initial connectivity set rich or lazy learning."""

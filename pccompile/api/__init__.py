"""What a user calls: `compile`, the module that it returns, and what can be taught to the compiler."""

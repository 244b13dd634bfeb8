"""The attacks of AutoAttack (Croce and Hein, 2020), natively in TensorFlow."""

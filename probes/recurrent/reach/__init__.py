"""How strongly a final state depends on earlier states and inputs."""
